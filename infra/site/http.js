// Reading the local report's API, which a hosted page does not have.

// The deploy script has written in where the publisher is: it is not here, nor is the report.
const IS_HOSTED = Boolean(document.querySelector('meta[name="contextflow-publisher"]')?.content);
const TIMEOUT_MS = 10_000;
// A replay answers when every letter is on its way.
const POST_TIMEOUT_MS = 600_000;

/** The JSON at `path`; null where there is no such thing; throws where the server cannot be reached or fails. */
export async function readJson(path) {
  if (IS_HOSTED) return null;
  const response = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(TIMEOUT_MS) });
  // Object stores and CDNs answer 403, or a page of their own, for what does not exist.
  if (response.status === 404 || response.status === 403) return null;
  if (!response.ok) throw new Error(`${path} answered ${response.status}`);
  const isJson = response.headers.get('content-type')?.includes('json');
  return isJson ? response.json() : null;
}

/** Sends JSON; the status and what came back as JSON, null where it is none. */
export async function postJson(path, value) {
  const response = await fetch(path, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(value),
    signal: AbortSignal.timeout(POST_TIMEOUT_MS),
  });
  return { status: response.status, body: await response.json().catch(() => null) };
}
