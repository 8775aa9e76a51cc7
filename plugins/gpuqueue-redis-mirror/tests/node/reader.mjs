// Reads queues with one version of BullMQ, or through bull-board: a JSON object a line in, one a line out; it writes no key.
// Arguments: the folder that holds node_modules, and the name under which that has the BullMQ to read with.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [modules, packageName] = process.argv.slice(2);
const require = createRequire(join(modules, "package.json"));
const { Queue, QueueEvents } = require(packageName);
const IORedis = require("ioredis");

const FIELDS = [
  ...["id", "name", "data", "opts", "progress", "delay", "priority", "timestamp", "processedOn", "finishedOn"],
  ...["attemptsMade", "attemptsStarted", "stalledCounter", "failedReason", "stacktrace", "returnvalue"],
  ...["deduplicationId", "repeatJobKey", "parentKey", "parent", "processedBy"],
];
const NEWEST_FIRST = ["completed", "failed"];
// A server that is away is told at once rather than waited for.
const connectionTo = (url) => ({ url, maxRetriesPerRequest: 1, retryStrategy: (tries) => Math.min(tries * 20, 500) });

const opened = new Map(); // url -> { queues: name -> Queue, boards: name -> http.Server }

function at(url) {
  if (!opened.has(url)) opened.set(url, { queues: new Map(), boards: new Map() });
  return opened.get(url);
}

function queueOf({ url, queue }) {
  const { queues } = at(url);
  if (!queues.has(queue)) {
    const made = new Queue(queue, { connection: connectionTo(url), skipMetasUpdate: true });
    made.on("error", () => {}); // each request answers with its own
    queues.set(queue, made);
  }
  return queues.get(queue);
}

function portOfBoard({ url, queue }) {
  const { boards } = at(url);
  if (boards.has(queue)) return boards.get(queue).address().port;
  const { createBullBoard } = require("@bull-board/api");
  const { BullMQAdapter } = require("@bull-board/api/bullMQAdapter");
  const { ExpressAdapter } = require("@bull-board/express");
  const serverAdapter = new ExpressAdapter();
  createBullBoard({ queues: [new BullMQAdapter(queueOf({ url, queue }))], serverAdapter });
  return new Promise((resolve, reject) => {
    const server = serverAdapter.getRouter().listen(0, "127.0.0.1", () => resolve(server.address().port));
    server.on("error", reject);
    boards.set(queue, server);
  });
}

async function lastEventId({ url, queue }) {
  const client = new IORedis(url, connectionTo(url));
  client.on("error", () => {});
  try {
    const [entry] = await client.xrevrange(`bull:${queue}:events`, "+", "-", "COUNT", 1);
    return entry?.[0];
  } finally {
    client.disconnect();
  }
}

const numbers = (id) => id.split("-").map(BigInt);

function isAfter(id, other) {
  const [[ms, n], [otherMs, otherN]] = [numbers(id), numbers(other)];
  return ms > otherMs || (ms === otherMs && n > otherN);
}

// What a QueueEvents consumer that begins after `start` hears, up to the stream's end of now.
async function heard({ url, queue, start }) {
  const end = await lastEventId({ url, queue });
  if (end === undefined || !isAfter(end, start)) return [];
  const events = [];
  const consumer = new QueueEvents(queue, { connection: { url }, autorun: false, lastEventId: start });
  try {
    await new Promise((resolve, reject) => {
      consumer.emit = (event, ...args) => {
        if (event === "error") reject(args[0]);
        const id = args.at(-1);
        if (typeof id !== "string" || event.includes(":")) return true;
        events.push({ id, event, ...(args.length > 1 ? args[0] : {}) });
        if (id === end) resolve();
        return true;
      };
      consumer.run().catch(reject);
    });
  } finally {
    consumer.emit = () => true;
    await consumer.close();
  }
  return events;
}

const answers = {
  counts: (asked) => queueOf(asked).getJobCounts(),
  ids: async (asked) => {
    const jobs = await queueOf(asked).getJobs([asked.state], 0, -1, !NEWEST_FIRST.includes(asked.state));
    return jobs.map((job) => job.id);
  },
  job: async (asked) => {
    const job = await queueOf(asked).getJob(asked.job);
    if (!job) return null;
    const known = FIELDS.filter((field) => job[field] !== undefined && job[field] !== null);
    return { ...Object.fromEntries(known.map((field) => [field, job[field]])), state: await job.getState() };
  },
  is_paused: (asked) => queueOf(asked).isPaused(),
  logs: async (asked) => (await queueOf(asked).getJobLogs(asked.job)).logs,
  workers: async (asked) => (await queueOf(asked).getWorkers()).map(({ rawname }) => rawname),
  metrics: async (asked) => {
    const { meta, data } = await queueOf(asked).getMetrics(asked.kind);
    return { ...meta, data: data.map(Number) };
  },
  events: heard,
  board: portOfBoard,
  close: async ({ url }) => {
    const { queues, boards } = at(url);
    opened.delete(url);
    for (const board of boards.values()) board.close();
    await Promise.all([...queues.values()].map((queue) => queue.close().catch(() => queue.disconnect())));
    return null;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { op, ...asked } = JSON.parse(line);
  let answer;
  try {
    answer = { result: await answers[op](asked) };
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit(0);
