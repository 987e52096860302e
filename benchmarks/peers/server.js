// Yoga or Mercurius, with or without JIT, over rows in memory or over the register upstream.
//   SERVER=yoga|mercurius JIT=yes|no PORT=4000, and ROSTER=file.json or UPSTREAM=http://... KEY=...
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { useGraphQlJit } from "@envelop/graphql-jit";
import DataLoader from "dataloader";
import fastify from "fastify";
import { createSchema, createYoga } from "graphql-yoga";
import mercurius from "mercurius";
import { Pool } from "undici";

const { SERVER, JIT, PORT, ROSTER, UPSTREAM, KEY, CALLS_AT_ONCE = "16" } = process.env;
const usesJit = JIT === "yes";
const AT_ONCE = 100;

const typeDefs = readFileSync(new URL("schema.graphql", import.meta.url), "utf8");

function inMemory() {
  const { users } = JSON.parse(readFileSync(ROSTER, "utf8")).data;
  const courses = new Map();
  for (const user of users.nodes) {
    for (const place of user.enrollments.nodes) {
      if (!courses.has(place.course.id)) courses.set(place.course.id, place.course);
      place.course = courses.get(place.course.id);
    }
    user.places = user.enrollments.nodes;
    delete user.enrollments;
  }
  return {
    resolvers: {
      Query: { users: (_root, { first }) => ({ nodes: users.nodes.slice(0, first) }) },
      User: { enrollments: (user, { first }) => ({ nodes: user.places.slice(0, first) }) },
    },
  };
}

function overUpstream() {
  const pool = new Pool(UPSTREAM, { connections: Number(CALLS_AT_ONCE), pipelining: 1 });

  async function get(path) {
    const { statusCode, body } = await pool.request({
      path,
      method: "GET",
      headers: { authorization: `Bearer ${KEY}`, accept: "application/json" },
    });
    if (statusCode !== 200) throw new Error(`${path} answered ${statusCode}`);
    return body.json();
  }

  const toUser = (row) => ({ ...row, externalId: row.id, displayName: row.name });
  const toCourse = (row) => ({ ...row, externalId: row.id, courseCode: row.code });

  async function users(first) {
    const page = (offset) => get(`/users?offset=${offset}&limit=${Math.min(AT_ONCE, first - offset)}`);
    const { total, rows } = await page(0);
    const rest = [];
    for (let offset = AT_ONCE; offset < Math.min(first, total); offset += AT_ONCE) rest.push(page(offset));
    const pages = await Promise.all(rest);
    return { nodes: [rows, ...pages.map((each) => each.rows)].flat().map(toUser) };
  }

  async function inBatches(ids, path) {
    const batches = [];
    for (let start = 0; start < ids.length; start += AT_ONCE) {
      batches.push(get(path + ids.slice(start, start + AT_ONCE).join(",")));
    }
    return (await Promise.all(batches)).flat();
  }

  async function enrollmentsOf(userIds) {
    const found = new Map(userIds.map((id) => [id, []]));
    for (const row of await inBatches(userIds, "/enrollments?user_ids=")) {
      found.get(row.user_id).push({ ...row, role: { value: row.role } });
    }
    return userIds.map((id) => found.get(id));
  }

  async function coursesOf(ids) {
    const distinct = [...new Set(ids)];
    const found = new Map((await inBatches(distinct, "/courses?ids=")).map((row) => [row.id, toCourse(row)]));
    return ids.map((id) => found.get(id) ?? null);
  }

  const Query = { users: (_root, { first }) => users(first) };
  if (SERVER === "yoga") {
    return {
      context: () => ({ enrollments: new DataLoader(enrollmentsOf), courses: new DataLoader(coursesOf) }),
      resolvers: {
        Query,
        User: {
          enrollments: async (user, { first }, { enrollments }) => ({
            nodes: (await enrollments.load(user.id)).slice(0, first),
          }),
        },
        Enrollment: { course: (place, _arguments, { courses }) => courses.load(place.course_id) },
      },
    };
  }
  return {
    resolvers: { Query },
    // Without their cache, which writes every object down as a key: here it costs more than it saves.
    loaders: {
      User: {
        enrollments: {
          opts: { cache: false },
          loader: async (queries) => {
            const found = await enrollmentsOf(queries.map(({ obj }) => obj.id));
            return found.map((rows, index) => ({ nodes: rows.slice(0, queries[index].params.first) }));
          },
        },
      },
      Enrollment: {
        course: {
          opts: { cache: false },
          loader: (queries) => coursesOf(queries.map(({ obj }) => obj.course_id)),
        },
      },
    },
  };
}

const { resolvers, loaders, context } = ROSTER ? inMemory() : overUpstream();

if (SERVER === "yoga") {
  const yoga = createYoga({
    schema: createSchema({ typeDefs, resolvers }),
    context,
    logging: false,
    landingPage: false,
    plugins: usesJit ? [useGraphQlJit()] : [],
  });
  createServer(yoga).listen(Number(PORT), "127.0.0.1");
} else {
  const app = fastify();
  app.register(mercurius, { schema: typeDefs, resolvers, loaders, jit: usesJit ? 1 : 0 });
  app.get("/health", () => ({}));
  await app.listen({ port: Number(PORT), host: "127.0.0.1" });
}
