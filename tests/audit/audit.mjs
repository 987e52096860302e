// Runs every audit against the server at AUDIT_URL with the key AUDIT_TOKEN; ends with 1 unless
// each of them is ok: a warning (SHOULD) and a notice (MAY) count as much as an error (MUST).
import { auditServer } from 'graphql-http';

const EXPECTED = 61;
const { AUDIT_URL: url, AUDIT_TOKEN: token } = process.env;

const results = await auditServer({
  url,
  fetchFn: (input, init = {}) => {
    const headers = new Headers(init.headers);
    headers.set('authorization', `Bearer ${token}`);
    return fetch(input, { ...init, headers });
  },
});
const counts = {};
for (const { id, name, status, reason } of results) {
  counts[status] = (counts[status] ?? 0) + 1;
  if (status !== 'ok') console.log(`${status} ${id} ${name}: ${reason}`);
}
console.log(`${counts.ok ?? 0} of ${results.length} audits ok ${JSON.stringify(counts)}`);
process.exit(results.length === EXPECTED && counts.ok === EXPECTED ? 0 : 1);
