// A list of names with their numbers, the greatest first, each with a bar for its share.

import { el, eventText, formatCount } from './text.js';

/** Fills `list` with `{ name, note, number, shown }`; `shown` is the number in words, `empty` stands in place of no items. */
export function showRanks(list, empty, items) {
  const most = Math.max(1, ...items.map(({ number }) => number));
  empty.hidden = items.length > 0;
  list.replaceChildren(...items.map(({ name, note, number, shown }) => {
    const bar = el('span', { class: 'rank-bar', 'aria-hidden': 'true' });
    bar.style.setProperty('--share', number / most);
    return el('li', {},
      el('span', { class: 'rank-label' },
        eventText('span', name ?? 'Unknown', { className: 'rank-name' }),
        ...(note ? [eventText('span', note, { limit: 60, className: 'rank-note' })] : [])),
      el('span', { class: 'rank-number' }, shown ?? formatCount(number)),
      bar);
  }));
}
