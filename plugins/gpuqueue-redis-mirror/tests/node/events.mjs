// Listens to one queue's events as an application's QueueEvents does, tells each in a line, and ends with status 1 where its
// consumer dies.
// Arguments: the folder that holds node_modules, the name of the BullMQ to listen with, the server's URL, the queue, and the id
// of the event after which to begin.

import { createRequire } from "node:module";
import { join } from "node:path";

const [modules, packageName, url, queue, lastEventId] = process.argv.slice(2);
const { QueueEvents } = createRequire(join(modules, "package.json"))(packageName);

const tell = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const connection = { url, retryStrategy: (tries) => Math.min(tries * 20, 500) };
const consumer = new QueueEvents(queue, { connection, autorun: false, lastEventId, blockingTimeout: 1000 });

consumer.emit = (event, ...args) => {
  if (event === "error") tell({ error: `${args[0].name}: ${args[0].message}` });
  const id = args.at(-1);
  // Each event is emitted twice, the second time under its job's own name.
  if (typeof id === "string" && !event.includes(":")) tell({ heard: { id, event, ...(args.length > 1 ? args[0] : {}) } });
  return true;
};

// Whoever started this holds its standard input open, and ends it by letting go.
process.stdin.resume().on("end", () => process.exit(0));

await consumer.waitUntilReady();
tell({ ready: true });
try {
  await consumer.run();
  tell({ died: "the consumer stopped by itself" });
} catch (error) {
  tell({ died: `${error.name}: ${error.message}` });
}
process.exitCode = 1;
process.stdout.write("", () => process.exit());
