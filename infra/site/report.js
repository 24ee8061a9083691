// The live report: counts, latency, events per second and per city, the last rows.

import { createTimeChart } from './chart.js';
import { showDeadLetters } from './dead-letters.js';
import { readJson } from './http.js';
import { showRanks } from './ranks.js';
import { el, eventText, formatCount, formatMs, formatSecond, formatTime, formatUsd } from './text.js';

const POLL_MS = 2000;
const SECONDS = 120;

const $ = (id) => document.getElementById(id);

/** `elsewhere`: the address of the report to show where there is no live one. */
export function startReport({ setConnection, elsewhere }) {
  const chart = createRateChart();
  let marked = null;
  let timer = null;
  let lastAnswer = null;
  let inFlight = false;

  async function poll() {
    clearTimeout(timer);
    if (inFlight || document.hidden) return;
    inFlight = true;
    try {
      const report = await readJson('/api/report');
      if (report === null) return stop();
      show(report, chart, marked);
      lastAnswer = Date.now();
      setConnection('live');
      showStale(null);
    } catch {
      setConnection('unreachable');
      showStale(lastAnswer ? `Not reachable. Showing the report of ${formatSecond(lastAnswer / 1000)} UTC.`
        : 'Not reachable. Trying again every 2 seconds.');
    } finally {
      inFlight = false;
    }
    timer = setTimeout(poll, POLL_MS);
  }

  function stop() {
    document.removeEventListener('visibilitychange', poll);
    $('report').hidden = true;
    if (elsewhere) embed(elsewhere);
    else $('report-elsewhere').hidden = false;
    setConnection('hosted');
  }

  document.addEventListener('visibilitychange', poll);
  poll();
  return { mark: (eventId) => { marked = eventId; } };
}

/** In a frame that may do what Looker Studio's own embed code allows, and no more. */
function embed(address) {
  $('embedded').append(el('iframe', {
    src: address, title: 'Report of the warehouse', loading: 'lazy', allowfullscreen: '',
    sandbox: 'allow-storage-access-by-user-activation allow-scripts allow-same-origin allow-popups allow-popups-to-escape-sandbox',
  }));
  $('embedded').hidden = false;
}

function createRateChart() {
  let first = 0;
  const chart = createTimeChart({
    container: $('rate'), readout: $('rate-readout'), empty: $('rate-empty'),
    label: 'Events per second, last 2 minutes', slots: SECONDS, page: 10, isRunning: true,
    ticks: [['start', 0, '2 min ago'], ['middle', SECONDS / 2, '1 min ago'], ['end', SECONDS, 'now']],
    describe: (index, number) => `${formatSecond(first + index)} UTC: ${formatCount(number)} events`,
    summarise: (events) => `${formatCount(events.reduce((sum, number) => sum + number, 0))} events, `
      + `peak ${formatCount(Math.max(...events))} a second`,
  });
  return {
    update(now, perSecond) {
      first = Math.floor((Date.parse(now) || Date.now()) / 1000) - SECONDS + 1;
      const events = new Array(SECONDS).fill(0);
      for (const { second, events: number } of perSecond) {
        const index = Math.floor(Date.parse(second) / 1000) - first;
        if (index >= 0 && index < SECONDS && Number.isFinite(number)) events[index] = number;
      }
      chart.update(events);
    },
  };
}

function showStale(text) {
  $('report').hidden = false;
  $('stale').hidden = text === null;
  if ($('stale').textContent !== (text ?? '')) $('stale').textContent = text ?? '';
}

function show(report, chart, marked) {
  const { counts = {}, latency_ms: latency } = report;
  $('landed').textContent = formatCount(counts.landed);
  $('dead-lettered').textContent = formatCount(counts.dead_lettered);
  $('dead-lettered').classList.toggle('is-bad', counts.dead_lettered > 0);
  $('duplicates').textContent = formatCount(counts.duplicates);
  $('p50').textContent = formatMs(latency?.p50 ?? NaN);
  $('p99').textContent = formatMs(latency?.p99 ?? NaN);
  const { load, usd_per_million: usd } = report.cost ?? {};
  $('cost').textContent = formatUsd(usd ?? NaN);
  $('cost').title = load ? `on the clouds, at ${formatCount(load.rps)} events a second, ${formatCount(load.batch)} a request` : '';
  $('samples').textContent = latency?.samples
    ? `Latency from received to queryable, over the last ${formatCount(latency.samples)} events`
    : 'Latency from received to queryable: no events yet';

  chart.update(report.now, report.events_per_second ?? []);
  const places = report.events_per_city ?? [];
  showRanks($('cities'), $('cities-empty'),
    places.map(({ country, city, events }) => ({ name: city, note: country, number: events })));
  showDeadLetters(report.dead_letters ?? []);
  $('visits-link').hidden = false;
  showRows(report.last_rows ?? [], String(report.now).slice(0, 10), marked);
}

function showRows(rows, today, marked) {
  // A reader who is copying an event id keeps the selection.
  const selection = getSelection();
  if (!selection.isCollapsed && $('rows').contains(selection.anchorNode)) return;

  $('rows-empty').hidden = rows.length > 0;
  $('rows-scroll').hidden = rows.length === 0;
  $('rows').replaceChildren(...rows.map((row) =>
    el('tr', { class: row.event_id === marked ? 'is-mine' : null },
      timeCell(row.event_timestamp, today),
      eventText('td', row.event_name),
      eventText('td', row.user_id),
      eventText('td', row.page_url, { className: 'wide' }),
      eventText('td', [row.city, row.country].filter(Boolean).join(', ')),
      timeCell(row.received_at, today),
      timeCell(row.loaded_at, today),
      eventText('td', row.event_id, { className: 'id' }))));
}

function timeCell(value, today) {
  if (!value) return eventText('td', null);
  const cell = eventText('td', formatTime(value, today), { className: 'time' });
  cell.title = eventText('span', value).textContent;
  return cell;
}
