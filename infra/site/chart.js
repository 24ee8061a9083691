// Numbers over time: bars with axis labels, and a read-out by pointer, touch or arrow keys.

import { formatCompact, svg } from './text.js';

const MARGIN = { top: 10, right: 2, bottom: 24, left: 40 };
// So near to a bar, in pixels, the pointer means it.
const REACH = 6;

/** A chart of `slots` numbers. `ticks` are `[anchor, slot, label]`, `page` is how far PageUp and PageDown go; `describe` puts
 *  one number into words and `summarise` all of them. Where it `isRunning`, the last number is not yet whole. */
export function createTimeChart({ container, readout, empty, label, slots, ticks, page, isRunning, describe, summarise }) {
  const plot = svg('svg', {
    tabindex: '0', role: 'slider', 'aria-label': label,
    'aria-valuemin': '0', 'aria-valuemax': slots - 1, 'aria-valuenow': slots - 1,
  });
  container.append(plot);

  let numbers = new Array(slots).fill(0);
  // Index of the number being read out; null: the summary.
  let chosen = null;

  function update(newest) {
    numbers = newest;
    const isEmpty = numbers.every((number) => number === 0);
    container.hidden = isEmpty;
    empty.hidden = !isEmpty;
    draw();
  }

  function draw() {
    const { clientWidth: width, clientHeight: height } = container;
    const innerWidth = width - MARGIN.left - MARGIN.right;
    if (innerWidth <= 0) return readOut();
    const top = niceCeiling(Math.max(...numbers));
    const step = innerWidth / slots;
    const x = (index) => MARGIN.left + index * step;
    const y = (number) => height - MARGIN.bottom - (number / top) * (height - MARGIN.top - MARGIN.bottom);

    plot.setAttribute('viewBox', `0 0 ${width} ${height}`);
    plot.replaceChildren(
      ...[0, top / 2, top].flatMap((tick) => [
        svg('line', { class: 'grid', x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
        svg('text', { x: MARGIN.left - 8, y: y(tick) + 4, 'text-anchor': 'end' }, formatCompact(tick)),
      ]),
      ...ticks.map(([anchor, index, text]) => svg('text', { x: x(index), y: height - 6, 'text-anchor': anchor }, text)),
      // A number that is still running is drawn lighter.
      svg('path', { class: 'bars', d: bars(isRunning ? numbers.slice(0, -1) : numbers, 0) }),
      ...(isRunning ? [svg('path', { class: 'bars running', d: bars(numbers.slice(-1), slots - 1) })] : []),
      ...(chosen === null ? [] : [
        svg('rect', { class: 'cursor', x: x(chosen), y: MARGIN.top, width: Math.max(step, 1), height: y(0) - MARGIN.top }),
        svg('path', { class: 'bars chosen', d: bars([numbers[chosen]], chosen) }),
      ]),
    );
    readOut();

    function bars(shown, from) {
      const barWidth = Math.max(step - Math.min(2, step * 0.25), 1);
      return shown.map((number, offset) => !(number > 0) ? ''
        : `M${x(from + offset).toFixed(2)} ${y(0)}V${Math.min(y(number), y(0) - 1).toFixed(2)}h${barWidth.toFixed(2)}V${y(0)}z`).join('');
    }
  }

  function readOut() {
    const index = chosen ?? slots - 1;
    const one = describe(index, numbers[index]);
    const hasAny = numbers.some((number) => number > 0);
    if (chosen !== null) readout.textContent = one;
    else readout.textContent = hasAny ? summarise(numbers) : '';
    plot.setAttribute('aria-valuenow', index);
    plot.setAttribute('aria-valuetext', one);
  }

  function choose(index) {
    chosen = index === null ? null : Math.min(Math.max(index, 0), slots - 1);
    draw();
  }

  function chooseAt({ clientX }) {
    const { left, width } = plot.getBoundingClientRect();
    const step = (width - MARGIN.left - MARGIN.right) / slots;
    const index = Math.floor((clientX - left - MARGIN.left) / step);
    choose(nearest(index, Math.floor(REACH / step)));
  }

  /** Of the slots around `index` that hold something the nearest one, else `index`. */
  function nearest(index, reach) {
    for (let distance = 0; distance <= reach; distance += 1) {
      const found = [index - distance, index + distance].find((at) => numbers[at] > 0);
      if (found !== undefined) return found;
    }
    return index;
  }

  plot.addEventListener('pointermove', chooseAt);
  plot.addEventListener('pointerdown', chooseAt);
  // A finger leaves when it is lifted: its read-out stays until the chart loses the focus.
  plot.addEventListener('pointerleave', ({ pointerType }) => pointerType === 'mouse' && choose(null));
  plot.addEventListener('blur', () => choose(null));
  plot.addEventListener('keydown', (event) => {
    const from = chosen ?? slots;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from + page, PageDown: from - page, Home: 0, End: slots - 1 };
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
