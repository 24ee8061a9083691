// The analysts' questions: what visitors look at, put into the cart and buy, with what and when.

import { createTimeChart } from './chart.js';
import { readJson } from './http.js';
import { showRanks } from './ranks.js';
import { el, eventText, formatCount, formatMoney, formatShare, visible } from './text.js';

const MINUTES = 24 * 60;
const STEPS = { view: 'View a page', cart: 'Put into the cart', purchase: 'Buy' };

const $ = (id) => document.getElementById(id);
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const clock = (minute) => `${String(Math.floor(minute / 60)).padStart(2, '0')}:${String(minute % 60).padStart(2, '0')}`;

let day = '';
const chart = createTimeChart({
  container: $('minutes'), readout: $('minutes-readout'), empty: $('minutes-empty'),
  label: 'Page views per minute of a day', slots: MINUTES, page: 60,
  ticks: [['start', 0, '00:00'], ['middle', MINUTES / 4, '06:00'], ['middle', MINUTES / 2, '12:00'],
    ['middle', MINUTES * 3 / 4, '18:00'], ['end', MINUTES, '24:00']],
  describe: (minute, views) => `${day} ${clock(minute)} UTC: ${formatCount(views)} views`,
  summarise: (views) => `${formatCount(sum(views))} views, at most ${formatCount(Math.max(...views))} a minute`,
});

$('day').addEventListener('change', async () => {
  const asked = $('day').value;
  const answer = await ask(`/api/visits?day=${encodeURIComponent(asked)}`);
  // Only the newest choice may write to the page.
  if (answer && $('day').value === asked) showMinutes(answer.page_views_per_minute);
});

const answer = await ask('/api/visits');
if (answer) show(answer);

async function ask(path) {
  try {
    const answer = await readJson(path);
    if (answer === null) throw new Error('nothing there');
    setConnection('live', 'live');
    return answer;
  } catch {
    setConnection('unreachable', 'warehouse not reachable');
    return null;
  }
}

function setConnection(state, text) {
  $('connection').dataset.state = state;
  if ($('connection').textContent !== text) $('connection').textContent = text;
}

function show(answer) {
  const { visits_by_device_type: devices, sales_by_category: categories, visits_by_page: pages, conversion_funnel: steps } = answer;
  const visits = sum(devices.map((device) => device.visits));
  const isEmpty = visits === 0 && pages.length === 0 && categories.length === 0;
  $('nothing').hidden = !isEmpty;
  $('answers').hidden = isEmpty;
  if (isEmpty) return;

  const buying = steps.at(-1)?.visits ?? 0;
  $('total-visits').textContent = formatCount(visits);
  $('total-views').textContent = formatCount(sum(answer.days.map(({ page_views: views }) => views)));
  $('total-bought').textContent = formatCount(sum(categories.map(({ bought }) => bought)));
  $('total-sales').textContent = formatCount(sum(categories.map(({ sales }) => sales)));
  $('total-conversion').textContent = formatShare(buying, visits);

  showFunnel(steps);
  showRanks($('devices'), $('devices-empty'), devices.map((device) =>
    ({ name: device.device_type, note: formatShare(device.visits, visits), number: device.visits })));
  showRanks($('pages'), $('pages-empty'), pages.map((page) =>
    ({ name: page.page_url, note: `${formatCount(page.visits)} visits`, number: page.page_views })));
  showRanks($('categories'), $('categories-empty'), categories.map((category) =>
    ({ name: category.category, note: `${formatCount(category.bought)} pieces`, number: category.sales, shown: formatMoney(category.sales) })));
  showRanks($('items'), $('items-empty'), answer.popular_items.map((item) =>
    ({ name: item.product_name ?? item.product_id, note: `${formatCount(item.put_into_cart)} in carts`, number: item.bought })));
  $('day').replaceChildren(...answer.days.map(({ day: one }) => el('option', { value: one }, visible(one, 10))).reverse());
  showMinutes(answer.page_views_per_minute);
}

/** Each step as wide as its share of the first, with what is left of the step before it. */
function showFunnel(steps) {
  const first = steps[0]?.visits ?? 0;
  $('funnel-empty').hidden = first > 0;
  $('funnel').replaceChildren(...steps.filter(() => first > 0).map(({ step, visits }, index) => {
    const before = steps[index - 1]?.visits;
    const bar = el('span', { class: 'funnel-bar', 'aria-hidden': 'true' });
    bar.style.setProperty('--share', visits / first);
    return el('li', {},
      eventText('span', Object.hasOwn(STEPS, step) ? STEPS[step] : step, { className: 'funnel-step' }),
      el('span', { class: 'funnel-visits' }, formatCount(visits)),
      bar,
      el('span', { class: 'funnel-share' }, index === 0 ? 'all of them' : `${formatShare(visits, before)} of the step before`));
  }));
}

function showMinutes({ day: shown, minutes }) {
  day = visible(shown ?? '', 10);
  if (shown) $('day').value = shown;
  const views = new Array(MINUTES).fill(0);
  const midnight = Date.parse(`${shown}T00:00:00Z`);
  for (const { minute, page_views: number } of minutes) {
    const index = Math.floor((Date.parse(minute) - midnight) / 60_000);
    if (index >= 0 && index < MINUTES && Number.isFinite(number)) views[index] = number;
  }
  chart.update(views);
}
