// Events per second over the last two minutes: bars with axis labels, and a read-out by pointer, touch or arrow keys.

import { formatCompact, formatCount, formatSecond, svg } from './text.js';

const SECONDS = 120;
const MARGIN = { top: 10, right: 2, bottom: 24, left: 40 };

export function createRateChart({ container, readout, empty }) {
  const plot = svg('svg', {
    tabindex: '0', role: 'slider', 'aria-label': 'Events per second, last 2 minutes',
    'aria-valuemin': '0', 'aria-valuemax': SECONDS - 1, 'aria-valuenow': SECONDS - 1,
  });
  container.append(plot);

  let first = 0;
  let events = new Array(SECONDS).fill(0);
  // Index of the second being read out; null: the summary.
  let chosen = null;

  function update(now, perSecond) {
    const last = Math.floor((Date.parse(now) || Date.now()) / 1000);
    first = last - SECONDS + 1;
    events = new Array(SECONDS).fill(0);
    for (const { second, events: number } of perSecond) {
      const index = Math.floor(Date.parse(second) / 1000) - first;
      if (index >= 0 && index < SECONDS && Number.isFinite(number)) events[index] = number;
    }
    const isEmpty = events.every((number) => number === 0);
    container.hidden = isEmpty;
    empty.hidden = !isEmpty;
    draw();
  }

  function draw() {
    const { clientWidth: width, clientHeight: height } = container;
    const innerWidth = width - MARGIN.left - MARGIN.right;
    if (innerWidth <= 0) return readOut();
    const top = niceCeiling(Math.max(...events));
    const step = innerWidth / SECONDS;
    const x = (index) => MARGIN.left + index * step;
    const y = (number) => height - MARGIN.bottom - (number / top) * (height - MARGIN.top - MARGIN.bottom);

    plot.setAttribute('viewBox', `0 0 ${width} ${height}`);
    plot.replaceChildren(
      ...[0, top / 2, top].flatMap((tick) => [
        svg('line', { class: 'grid', x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
        svg('text', { x: MARGIN.left - 8, y: y(tick) + 4, 'text-anchor': 'end' }, formatCompact(tick)),
      ]),
      ...[['start', 0, '2 min ago'], ['middle', SECONDS / 2, '1 min ago'], ['end', SECONDS, 'now']].map(
        ([anchor, index, label]) => svg('text', { x: x(index), y: height - 6, 'text-anchor': anchor }, label)),
      // The last second is still running: its bar is drawn lighter.
      svg('path', { class: 'bars', d: bars(events.slice(0, -1), 0) }),
      svg('path', { class: 'bars running', d: bars(events.slice(-1), SECONDS - 1) }),
      ...(chosen === null ? [] : [
        svg('rect', { class: 'cursor', x: x(chosen), y: MARGIN.top, width: step, height: y(0) - MARGIN.top }),
        svg('path', { class: 'bars chosen', d: bars([events[chosen]], chosen) }),
      ]),
    );
    readOut();

    function bars(numbers, from) {
      const barWidth = Math.max(step - Math.min(2, step * 0.25), 1);
      return numbers.map((number, offset) => !(number > 0) ? ''
        : `M${x(from + offset).toFixed(2)} ${y(0)}V${Math.min(y(number), y(0) - 1).toFixed(2)}h${barWidth.toFixed(2)}V${y(0)}z`).join('');
    }
  }

  function readOut() {
    const index = chosen ?? SECONDS - 1;
    const total = events.reduce((sum, number) => sum + number, 0);
    const ofSecond = `${formatSecond(first + index)} UTC: ${formatCount(events[index])} events`;
    readout.textContent = chosen === null && total > 0
      ? `${formatCount(total)} events, peak ${formatCount(Math.max(...events))} a second`
      : chosen === null ? '' : ofSecond;
    plot.setAttribute('aria-valuenow', index);
    plot.setAttribute('aria-valuetext', ofSecond);
  }

  function choose(index) {
    chosen = index === null ? null : Math.min(Math.max(index, 0), SECONDS - 1);
    draw();
  }

  function chooseAt({ clientX }) {
    const { left, width } = plot.getBoundingClientRect();
    const share = (clientX - left - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
    choose(Math.floor(share * SECONDS));
  }

  plot.addEventListener('pointermove', chooseAt);
  plot.addEventListener('pointerdown', chooseAt);
  // A finger leaves when it is lifted: its read-out stays until the chart loses the focus.
  plot.addEventListener('pointerleave', ({ pointerType }) => pointerType === 'mouse' && choose(null));
  plot.addEventListener('blur', () => choose(null));
  plot.addEventListener('keydown', (event) => {
    const from = chosen ?? SECONDS;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from + 10, PageDown: from - 10, Home: 0, End: SECONDS - 1 };
    if (event.key === 'Escape') choose(null);
    if (!Object.hasOwn(to, event.key)) return;
    event.preventDefault();
    choose(to[event.key]);
  });
  new ResizeObserver(draw).observe(container);

  return { update };
}

/** The smallest round number not below `value` whose half is whole, too. */
function niceCeiling(value) {
  for (let power = 1; ; power *= 10) {
    const found = [2, 4, 6, 8, 10, 12, 16].find((digit) => digit * power >= value);
    if (found) return found * power;
  }
}
