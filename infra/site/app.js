// Wires the page: the publish button, the live report, and the one connection state both of them feed.

import { startPublish } from './publish.js';
import { startReport } from './report.js';

const CONNECTION = { live: 'live', hosted: 'hosted', unreachable: 'pipeline not reachable' };

function setConnection(state) {
  const shown = document.getElementById('connection');
  // Writing the same text again would make a screen reader say it again.
  if (shown.dataset.state === state) return;
  shown.dataset.state = state;
  shown.textContent = CONNECTION[state];
}

const setting = (name) => document.querySelector(`meta[name="contextflow-${name}"]`).content.trim();
const publisher = setting('publisher').replace(/\/+$/, '');
const report = startReport({ setConnection, elsewhere: setting('report') });
startPublish({ publisher, setConnection, onAccepted: report.mark });
