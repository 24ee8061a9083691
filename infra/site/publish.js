// The button: publishes one event, then follows its trace until it has landed.

import { readJson } from './http.js';
import { el, eventText, formatMs, visible } from './text.js';

const POLL_MS = 100;
const GIVE_UP_MS = 30_000;
const LONGEST_WAIT_S = 60;

const STAGES = {
  received: ['Received', 'by the publisher'],
  published: ['Published', 'in the raw topic'],
  enriched: ['Enriched', 'in the enriched topic'],
  appended: ['Appended', 'to the warehouse'],
  landed: ['Landed', 'the row can be queried'],
  dead_lettered: ['Dead-lettered', 'kept with its reason'],
};
const WAY = ['received', 'published', 'enriched', 'landed'];

const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));

export function startPublish({ publisher, setConnection, onAccepted }) {
  const button = $('publish');
  // Only the newest press may write to the page.
  let newest = 0;

  button.addEventListener('click', async () => {
    // aria-disabled in place of disabled, which would take the keyboard's focus away.
    if (button.getAttribute('aria-disabled') === 'true') return;
    const press = ++newest;
    const isNewest = () => press === newest;

    setBusy(button, 'Publishing…');
    clear();
    const answer = await publish(publisher);
    setConnection(answer.reachable ? 'live' : 'unreachable');
    showAnswer(answer);
    if (answer.eventId) onAccepted(answer.eventId);
    if (answer.retryAfter) await countDown(button, answer.retryAfter);
    setReady(button);
    if (answer.eventId) await follow(answer.eventId, isNewest);
  });

  clear();
  say('No event yet: press the button.');
}

/**
 * Sends a click on this page, as text, since a cross-origin browser needs no preflight for that. The page of `contextflow
 * dev` sends nothing: its publisher makes a synthetic event, of a visitor whose address has a place.
 */
async function publish(publisher) {
  const event = publisher ? clickEvent() : null;
  let response;
  try {
    response = await fetch(`${publisher}/publish`, { method: 'POST', body: event, signal: AbortSignal.timeout(GIVE_UP_MS) });
  } catch {
    return { reachable: false, error: 'The publisher is not reachable. Is the pipeline running?' };
  }
  const body = await response.json().catch(() => null);
  const accepted = body?.accepted?.[0];
  if (response.ok && accepted) {
    return { reachable: true, eventId: String(accepted.event_id), problems: accepted.problems ?? [] };
  }
  const rejected = body?.rejected?.[0];
  if (response.ok && rejected) {
    return { reachable: true, error: 'The publisher rejected the event.', problems: [rejected] };
  }
  const reason = body?.error ?? body?.message ?? 'no reason given';
  return {
    reachable: response.status < 500,
    error: `Not published (${response.status}): ${visible(reason)}`,
    retryAfter: Math.min(Number(response.headers.get('retry-after')) || 0, LONGEST_WAIT_S),
  };
}

function clickEvent() {
  return JSON.stringify({
    event_id: crypto.randomUUID(),
    event_name: 'click',
    event_timestamp: new Date().toISOString(),
    page_url: location.href,
  });
}

function showAnswer({ eventId, error, problems = [] }) {
  if (error) {
    say(error, 'failed');
    showStages([], 'failed');
  } else {
    say(['Accepted, on its way: ', idOf(eventId)]);
    showStages([], 'in_flight');
  }
  $('problems').hidden = problems.length === 0;
  $('problems').replaceChildren(...problems.map(({ code, column, message }) =>
    el('li', {}, eventText('code', code), ' ', ...(column ? [eventText('b', column), ': '] : []),
      eventText('span', message, { limit: 300 }))));
}

async function follow(eventId, isNewest) {
  const until = performance.now() + GIVE_UP_MS;
  while (performance.now() < until) {
    let trace;
    try {
      trace = await readJson(`/api/trace/${encodeURIComponent(eventId)}`);
    } catch {
      // A gap in the answers is no answer: the event may well be on its way.
      trace = undefined;
    }
    if (!isNewest()) return;
    if (trace === null) {
      say(['Accepted. Its row in the warehouse will have the event id ', idOf(eventId)], 'done');
      showStages([{ stage: 'received' }], 'accepted');
      return;
    }
    if (trace) showTrace(trace);
    if (trace && trace.status !== 'in_flight') return;
    await sleep(POLL_MS);
    if (!isNewest()) return;
  }
  say(['Still in flight after 30 s, it may land later: ', idOf(eventId)], 'failed');
}

function showTrace({ event_id: eventId, status, stages = [], row }) {
  showStages(stages, status);
  const total = formatMs(stages.at(-1)?.ms);
  if (status === 'landed') say([el('strong', {}, `Landed in ${total}: `), idOf(eventId)], 'done');
  if (status === 'dead_letter') say([el('strong', {}, `Dead-lettered after ${total}: `), idOf(eventId)], 'failed');
  if (status === 'landed' && row) showRow(row);
}

/** The stages that were reported, then those still ahead; a dead letter, or an unknown stage, takes its own place. */
function showStages(reported, status) {
  const names = reported.map(({ stage }) => stage);
  const isOver = status === 'landed' || status === 'dead_letter';
  const reached = Math.max(-1, ...names.map((name) => WAY.indexOf(name)));
  const ahead = isOver ? [] : WAY.slice(reached + 1);

  const items = reported.map(({ stage, ms }, index) => {
    const state = stage === 'dead_lettered' ? 'failed' : 'done';
    const hop = index > 0 ? ms - reported[index - 1].ms : NaN;
    return stageItem(stage, state, ms, hop);
  });
  ahead.forEach((stage, index) => {
    items.push(stageItem(stage, status === 'in_flight' && index === 0 ? 'next' : 'ahead'));
  });
  patch($('stages'), items);
}

function stageItem(stage, state, ms, hop) {
  const [name, meaning] = Object.hasOwn(STAGES, stage) ? STAGES[stage] : [visible(stage, 40), ''];
  const time = Number.isFinite(ms) ? formatMs(ms) : '';
  const item = el('li', { 'data-state': state },
    el('span', { class: 'stage-name' }, name),
    el('span', { class: 'stage-meaning' }, meaning),
    el('span', { class: 'stage-time' }, time, ...(hop > 0 ? [el('small', {}, ` +${formatMs(hop)}`)] : [])));
  if (state === 'next') item.setAttribute('aria-current', 'step');
  return item;
}

/** Replaces only what changed, so that a stage's fill animates once and not at every poll. */
function patch(list, items) {
  items.forEach((item, index) => {
    const old = list.children[index];
    if (!old) list.append(item);
    else if (!old.isEqualNode(item)) old.replaceWith(item);
  });
  while (list.children.length > items.length) list.lastElementChild.remove();
}

function showRow(row) {
  $('row-columns').replaceChildren(...Object.entries(row).map(([column, value]) =>
    el('div', {}, eventText('dt', column, { limit: 80 }), eventText('dd', value, { limit: 300 }))));
  $('row').hidden = false;
}

function clear() {
  $('row').hidden = true;
  $('problems').hidden = true;
  showStages([], 'idle');
}

function idOf(eventId) {
  return eventText('code', eventId, { limit: 64 });
}

function say(content, state = '') {
  const outcome = $('outcome');
  const nodes = [content].flat();
  const text = nodes.map((node) => node.textContent ?? node).join('');
  if (outcome.textContent === text && outcome.dataset.state === state) return;
  outcome.dataset.state = state;
  outcome.replaceChildren(...nodes);
}

function setBusy(button, label) {
  button.setAttribute('aria-disabled', 'true');
  button.textContent = label;
}

function setReady(button) {
  button.removeAttribute('aria-disabled');
  button.textContent = 'Publish one event';
}

async function countDown(button, seconds) {
  for (let left = Math.ceil(seconds); left > 0; left -= 1) {
    setBusy(button, `Try again in ${left} s`);
    await sleep(1000);
  }
}
