// Builds the explorer's static files into the folder given; see ../README.md.
import { readFile, readdir, writeFile } from 'node:fs/promises';
import { build } from 'esbuild';

const UNUSED = [
  'codeAction',
  'codelens',
  'colorPicker',
  'diffEditor',
  'documentSymbols',
  'dropOrPasteInto',
  'gotoError',
  'inPlaceReplace',
  'inlayHints',
  'inlineCompletions',
  'inlineEdit',
  'inlineEdits',
  'linkedEditing',
  'multiDiffEditor',
  'rename',
  'sectionHeaders',
  'semanticTokens',
  'smartSelect',
  'stickyScroll',
  'suggest/browser/suggestInlineCompletions',
  'unicodeHighlighter',
];

const smaller = {
  name: 'smaller',
  setup({ onLoad, onResolve }) {
    onResolve({ filter: /^prettier\/(plugins\/estree|parser-babel)$/ }, () => ({
      path: new URL('src/json_format.js', import.meta.url).pathname,
    }));
    // The reader's own fonts do: Roboto and Fira Code would add 500 kB.
    onLoad({ filter: /graphiql\/dist\/style\.css$/ }, async ({ path }) => ({
      contents: (await readFile(path, 'utf8')).replace(
        /@font-face\s*\{[^}]*font-family:\s*["']?(Roboto|Fira Code)["']?;[^}]*\}/g,
        '',
      ),
      loader: 'css',
    }));
    // The stylesheet above holds Monaco's already.
    onLoad({ filter: /monaco-editor\/.*\.css$/ }, () => ({ contents: '', loader: 'css' }));
    // Parts of the editor that GraphQL and JSON have no use for.
    onLoad({ filter: /monaco-editor\/esm\/vs\/editor\/editor\.all\.js$/ }, async ({ path }) => ({
      contents: (await readFile(path, 'utf8'))
        .split('\n')
        .filter(line => !UNUSED.some(name => line.includes(`/${name}`)))
        .join('\n'),
    }));
  },
};

const target = process.argv[2];
const shared = {
  bundle: true,
  charset: 'utf8',
  define: { 'process.env.NODE_ENV': '"production"' },
  format: 'iife',
  legalComments: 'none', // every licence is in LICENSES.txt
  loader: { '.ttf': 'dataurl' },
  metafile: true,
  minify: true,
  outdir: target,
  plugins: [smaller],
  target: 'es2022',
};

const built = [
  await build({ ...shared, entryPoints: { explorer: 'src/explorer.jsx' }, jsx: 'automatic' }),
  await build({
    ...shared,
    entryPoints: {
      'editor.worker': 'monaco-editor/esm/vs/editor/editor.worker.js',
      'graphql.worker': 'monaco-graphql/esm/graphql.worker.js',
      'json.worker': 'monaco-editor/esm/vs/language/json/json.worker.js',
    },
  }),
];
const inputs = built.flatMap(({ metafile }) => Object.values(metafile.outputs)).flatMap(
  ({ inputs: parts }) => Object.keys(parts),
);
const packages = new Set(
  inputs.flatMap(path => path.match(/^.*node_modules\/(?:@[^/]+\/)?[^/]+/) ?? []),
);
await writeFile(`${target}/LICENSES.txt`, await licences([...packages].sort()));

async function licences(folders) {
  const list = [];
  const namesByText = new Map();
  for (const folder of folders) {
    const { name, version, license } = JSON.parse(await readFile(`${folder}/package.json`, 'utf8'));
    list.push(`${name} ${version}: ${license}`);
    const files = await readdir(folder);
    for (const file of files.filter(one => /^(licen[cs]e|notice|thirdparty)/i.test(one))) {
      const text = (await readFile(`${folder}/${file}`, 'utf8')).replaceAll('\r\n', '\n').trim();
      namesByText.set(text, [...(namesByText.get(text) ?? []), name]);
    }
  }
  const line = '-'.repeat(79);
  const texts = [...namesByText].map(
    ([text, names]) => `${line}\n${names.join(', ')}\n${line}\n\n${text}\n`,
  );
  return `The explorer is made of these packages and of our own files in build/src:

${list.join('\n')}

Those without a text of their own below come from the same authors, under the same licence, as
another one of the list: @graphiql/plugin-* as graphiql, react-compiler-runtime as react,
react-remove-scroll-bar as react-remove-scroll.

${texts.join('\n')}`;
}
