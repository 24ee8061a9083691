// What could not be used, by stage and reason, and the way back.

import { postJson } from './http.js';
import { el, eventText, formatCount, formatTime, visible } from './text.js';

const $ = (id) => document.getElementById(id);
let isBusy = false;
let last = [];

export function showDeadLetters(groups) {
  last = groups;
  // What a replay has answered stays to be read.
  $('dead-letters').hidden = groups.length === 0 && $('replay-outcome').textContent === '';
  $('dead-letters-scroll').hidden = groups.length === 0;
  const rows = groups.map((group) =>
    el('tr', {},
      el('td', { class: 'number' }, formatCount(group.letters)),
      eventText('td', group.stage),
      eventText('td', group.reason),
      el('td', {}, replayButton(group)),
      eventText('td', formatTime(group.first_seen)),
      eventText('td', formatTime(group.last_seen)),
      eventText('td', group.example, { className: 'id' })));
  // The same rows again would take the keyboard's focus away.
  const isSame = rows.length === $('letters').children.length
    && rows.every((row, index) => row.isEqualNode($('letters').children[index]));
  if (!isSame) $('letters').replaceChildren(...rows);
}

function replayButton({ stage, reason }) {
  const button = el('button', {
    type: 'button', class: 'small', 'aria-disabled': isBusy ? 'true' : null,
    'aria-label': `Replay dead letters of ${visible(stage, 40)}: ${visible(reason, 40)}`,
  }, 'Replay');
  button.addEventListener('click', () => replay(stage, reason));
  return button;
}

async function replay(stage, reason) {
  if (isBusy) return;
  setBusy(true);
  say('Replaying…');
  try {
    const { status, body } = await postJson('/api/dead-letters/replay', { stage, reason });
    if (status === 200) say(outcome(body));
    else say(`Not replayed: ${visible(body?.error ?? `status ${status}`)}`, 'failed');
  } catch {
    say('Not replayed: the pipeline is not reachable.', 'failed');
  }
  setBusy(false);
}

function setBusy(busy) {
  isBusy = busy;
  showDeadLetters(last);
}

function outcome({ letters, passing, left = [] }) {
  const stay = left.map(({ reason, letters: number, detail }) =>
    ` ${formatCount(number)} stay, ${visible(reason, 40)}: ${visible(detail, 200)}.`);
  return `${formatCount(passing)} of ${formatCount(letters)} went through the pipeline again.${stay.join('')}`;
}

function say(text, state = '') {
  $('replay-outcome').dataset.state = state;
  $('replay-outcome').textContent = text;
}
