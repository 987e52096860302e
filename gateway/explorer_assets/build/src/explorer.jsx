import { createGraphiQLFetcher } from '@graphiql/toolkit';
import { GraphiQL } from 'graphiql';
import { Kind, parse } from 'graphql';
import { useMemo, useState } from 'react';
import { createRoot } from 'react-dom/client';
import 'graphiql/style.css';
import './explorer.css';

const KEY_NAME = 'learning-gateway-key';
const here = new URL(document.currentScript?.src ?? window.location.href);
const assets = new URL('.', here);
const endpoint = new URL(document.documentElement.dataset.endpoint, window.location.href);

// Workers are separate files of the same origin: the page's policy allows no other.
const WORKERS = { json: 'json.worker.js', graphql: 'graphql.worker.js' };
globalThis.MonacoEnvironment = {
  getWorker: (_id, label) => new Worker(new URL(WORKERS[label] ?? 'editor.worker.js', assets)),
};

const DEFAULT_QUERY = `# Welcome to learning-gateway: one API over every learning platform you run.
#
# Type your API key into the field above, then press Ctrl-Enter (or Cmd-Enter) here.
# Ctrl-Space suggests what can be asked; the book on the left explains all of it.

# Which installations are there, and how are they?
query Providers {
  providers {
    providerId
    name
    platform
    state
    version
    problem
  }
}

# Who is there, and what do they learn? Null always means "the platform does not say".
query Users {
  users(first: 10) {
    totalCount
    nodes {
      displayName
      username
      roles {
        value
        sourceValue
      }
      enrollments(first: 5) {
        nodes {
          role {
            value
          }
          progress {
            ratio
          }
          course {
            title
            iconUrl(width: 64)
          }
        }
      }
    }
    # One provider that is down costs its own rows and nothing else; this says which.
    sources {
      provider {
        name
      }
      status
      message
    }
    pageInfo {
      hasNextPage
      endCursor
    }
  }
}
`;

function readKey() {
  try {
    return window.sessionStorage.getItem(KEY_NAME) ?? '';
  } catch {
    return '';
  }
}

function keepKey(key) {
  try {
    window.sessionStorage.setItem(KEY_NAME, key);
  } catch {
    // Without storage the key lasts until the page is left.
  }
}

// The key is read at each call, so that typing another one needs no new fetcher.
let currentKey = readKey();

async function fetchWithKey(url, options) {
  const headers = new Headers(options.headers);
  if (currentKey && !headers.has('authorization')) {
    headers.set('authorization', `Bearer ${currentKey}`);
  }
  return window.fetch(url, { ...options, headers, credentials: 'omit' });
}

// Subscriptions go over a websocket, one for each: what is typed as headers is sent as its first
// message, where a browser can send none.
const socket = new URL(endpoint);
socket.protocol = endpoint.protocol === 'https:' ? 'wss:' : 'ws:';
const shownFirst = {
  get Authorization() {
    return currentKey && `Bearer ${currentKey}`;
  },
};

const fetchFromGateway = createGraphiQLFetcher({
  url: endpoint.href,
  fetch: fetchWithKey,
  subscriptionUrl: socket.href,
  wsConnectionParams: shownFirst,
});

// GraphiQL reads what is typed a moment later; who presses Ctrl-Enter at once means the document as
// it is, and not the operation that was there before.
function asTyped(parameters, options) {
  let documentAST;
  try {
    documentAST = parse(parameters.query);
  } catch {
    return [parameters, options]; // the gateway says what is wrong with it
  }
  const operations = documentAST.definitions.filter(
    each => each.kind === Kind.OPERATION_DEFINITION,
  );
  const names = operations.map(each => each.name?.value);
  const meant = names.includes(parameters.operationName) || operations.length !== 1;
  const operationName = meant ? parameters.operationName : names[0];
  return [{ ...parameters, operationName }, { ...options, documentAST }];
}

function fetcher(parameters, options) {
  if (!currentKey && !options?.headers?.Authorization && !options?.headers?.authorization) {
    return { errors: [{ message: 'Type your API key into the field at the top first' }] };
  }
  return fetchFromGateway(...asTyped(parameters, options));
}

function Explorer() {
  const [key, setKey] = useState(currentKey);
  // GraphiQL asks for the schema again when its fetcher is another one: when the key it is asked
  // with has changed. The editor stays as it is, so that whoever clicks into it can type at once.
  const [schemaKey, setSchemaKey] = useState(currentKey);
  const fetchWithSchemaKey = useMemo(() => (...given) => fetcher(...given), [schemaKey]);

  function changeKey(event) {
    currentKey = event.target.value.trim();
    keepKey(currentKey);
    setKey(event.target.value);
  }

  return (
    <>
      <form
        className="key-bar"
        autoComplete="off"
        onSubmit={event => {
          event.preventDefault();
          setSchemaKey(currentKey);
        }}
      >
        <strong>learning-gateway</strong>
        <label htmlFor="api-key">API key</label>
        <input
          id="api-key"
          type="password"
          autoComplete="off"
          value={key}
          onChange={changeKey}
          onBlur={() => setSchemaKey(currentKey)}
          placeholder="Kept in this tab only"
          spellCheck="false"
        />
      </form>
      <GraphiQL
        fetcher={fetchWithSchemaKey}
        defaultQuery={DEFAULT_QUERY}
        shouldPersistHeaders={false}
        showPersistHeadersSettings={false}
      >
        <GraphiQL.Logo>
          <span />
        </GraphiQL.Logo>
      </GraphiQL>
    </>
  );
}

createRoot(document.getElementById('explorer')).render(<Explorer />);
