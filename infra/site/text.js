// From values to what a reader sees. Every text of an event is hostile input: it reaches the page as a text node or an
// attribute made here, never as markup.

const SVG = 'http://www.w3.org/2000/svg';
const TITLE_LIMIT = 2000;
const NONE = '–';

const count = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const money = new Intl.NumberFormat('en', { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const share = new Intl.NumberFormat('en', { style: 'percent', maximumFractionDigits: 1 });
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** An element with the text of an event: cut to `limit`, the whole (within reason) in its title. */
export function eventText(tag, value, { limit = 160, className } = {}) {
  if (value === null || value === undefined || value === '') {
    return el(tag, { class: `none ${className ?? ''}`.trim() }, NONE);
  }
  const text = visible(value, TITLE_LIMIT);
  const classes = `event-text ${className ?? ''}`.trim();
  return el(tag, { class: classes, title: text.length > 24 ? text : null }, cut(text, limit));
}

/** The value as one line in which nothing is unseen: a control or direction character would disguise its neighbours. */
export function visible(value, limit = 300) {
  const text = typeof value === 'object' ? JSON.stringify(value) : String(value);
  return cut(text, limit)
    .replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
      (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

function cut(text, limit) {
  // By code point, so that a cut never leaves half of a surrogate pair.
  return text.length <= limit ? text : `${[...text.slice(0, limit)].slice(0, -1).join('')}…`;
}

export function formatCount(value) {
  return Number.isFinite(value) ? count.format(value) : NONE;
}

export function formatCompact(value) {
  return compact.format(value);
}

export function formatMoney(value) {
  return Number.isFinite(value) ? money.format(value) : NONE;
}

export function formatShare(part, whole) {
  return whole > 0 ? share.format(part / whole) : NONE;
}

export function formatMs(value) {
  if (!Number.isFinite(value)) return NONE;
  if (value > 0 && value < 10) return `${value.toFixed(1)} ms`;
  if (value < 1000) return `${Math.round(value)} ms`;
  if (value < 60_000) return `${(value / 1000).toFixed(2)} s`;
  return `${count.format(value / 1000)} s`;
}

/** `$0.35`. */
export function formatUsd(value) {
  return Number.isFinite(value) ? `$${value.toFixed(2)}` : NONE;
}

/** `10:00:00.123` for a time of today (UTC), with its date otherwise; a text that is no time stays as it came. */
export function formatTime(value, today) {
  const ms = Date.parse(value);
  if (Number.isNaN(ms)) return value;
  const iso = new Date(ms).toISOString();
  const [date, time] = iso.slice(0, -1).split('T');
  return date === today ? time : `${date} ${time.slice(0, 8)}`;
}

export function formatSecond(seconds) {
  return new Date(seconds * 1000).toISOString().slice(11, 19);
}
