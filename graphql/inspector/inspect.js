// Compares graphql/schema.graphql of the working tree with the one this change began from, and
// fails on changes that break clients, unless CHANGELOG.md announces them.
//
// A change began where it left main; on main itself, at the commit before. BASE names another
// commit. An announcement is a line under "## Unreleased" such as
//
//     - **Breaking:** `User.email` is gone; ask for `User.emails`.
//
// Its first name in backticks covers what it names and what is below it: a type its fields, a
// field its arguments.

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { CriticalityLevel, diff } from '@graphql-inspector/core';
import { buildSchema } from 'graphql';

const SCHEMA = 'graphql/schema.graphql';
const ANNOUNCED = /^- \*\*Breaking:\*\* `([^`]+)`/gm;

const git = (...words) =>
  execFileSync('git', words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();

const attempt = (...words) => {
  try {
    return git(...words);
  } catch {
    return null;
  }
};

const commit = (name) => attempt('rev-parse', '--verify', '--quiet', `${name}^{commit}`);

function findBase() {
  const { BASE } = process.env;
  if (BASE) {
    const base = commit(BASE);
    if (!base) {
      console.error(`BASE=${BASE} names no commit`);
      process.exit(2);
    }
    return base;
  }
  const head = commit('HEAD');
  if (attempt('rev-parse', '--is-shallow-repository') === 'true' && !commit('HEAD~1')) {
    attempt('fetch', '--quiet', '--deepen=1');
  }
  for (const main of ['origin/main', 'main'].map(commit)) {
    const left = main && attempt('merge-base', main, head);
    if (left && left !== head) return left;
  }
  return commit('HEAD~1');
}

function announcements(changelog) {
  const [, after = ''] = changelog.split(/^## Unreleased$/m);
  const [unreleased] = after.split(/^## /m);
  return [...unreleased.matchAll(ANNOUNCED)].map(([, name]) => name);
}

const root = git('rev-parse', '--show-toplevel');
const base = findBase();
const before = base && attempt('show', `${base}:${SCHEMA}`);
if (!before) {
  console.log('schema: there is none before this one to compare with');
  process.exit(0);
}
const now = readFileSync(join(root, SCHEMA), 'utf8');
const names = announcements(readFileSync(join(root, 'CHANGELOG.md'), 'utf8'));
const isAnnounced = (path) => names.some((name) => path === name || path.startsWith(`${name}.`));

const changes = await diff(buildSchema(before), buildSchema(now));
let unannounced = 0;
for (const { criticality: { level }, message, path = 'schema' } of changes) {
  if (level === CriticalityLevel.NonBreaking) continue;
  let word = 'dangerous';
  if (level === CriticalityLevel.Breaking) word = isAnnounced(path) ? 'announced' : 'breaks';
  if (word === 'breaks') unannounced += 1;
  console.log(`${word}: ${path}: ${message}`);
}
console.log(`schema: ${changes.length} changes since ${base.slice(0, 12)}`);
if (unannounced) {
  console.error(
    'Add what breaks under "## Unreleased" of CHANGELOG.md, as\n' +
      '- **Breaking:** `Type.field` ...: what clients do instead\n' +
      'or keep it, and deprecate it first',
  );
  process.exit(1);
}
