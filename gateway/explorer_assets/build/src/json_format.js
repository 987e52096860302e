// Formats variables and headers for GraphiQL's "prettify" with the JSON parser that is in the
// bundle anyway, in the form of a Prettier plugin; Prettier's own would add 600 kB.
import { applyEdits, format } from 'jsonc-parser';

export const parsers = {
  jsonc: {
    astFormat: 'formatted-json',
    locStart: () => 0,
    locEnd: node => node.text.length,
    parse: text => ({ type: 'json', text }),
  },
};

export const printers = {
  'formatted-json': {
    print: path => {
      const { text } = path.node;
      return applyEdits(text, format(text, undefined, { insertSpaces: true, tabSize: 2 }));
    },
  },
};
