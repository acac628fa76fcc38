"use strict";
// Runs the plugin as Obsidian would. Reads what to do as JSON from its standard input and prints what
// came of it as JSON. "kill" is the number of the changing call before which the process kills itself;
// "meanwhile" maps a call, "link" for the first or "link:2" for the second of that name, to what another
// program does to a file just before it.

const fs = require("fs");
const Module = require("module");
const path = require("path");

const job = JSON.parse(fs.readFileSync(0, "utf8"));
const obsidian = require("./node_stub/obsidian.js");
const load = Module._load;
Module._load = (name, ...rest) => (name === "obsidian" ? obsidian : load(name, ...rest));

const CALLS = ["mkdir", "symlink", "link", "rename", "unlink", "rmdir", "chmod", "utimes", "open"];
const HANDLE_CALLS = ["write", "sync", "chmod", "utimes", "close"];
const calls = [];
const delayed = new Set();

function intercept(object, name, label) {
  const original = object[name];
  object[name] = async function (...given) {
    calls.push(label);
    if (calls.length === job.kill) process.kill(process.pid, "SIGKILL");
    const number = calls.filter((call) => call === label).length;
    const other = job.meanwhile?.[number === 1 ? label : `${label}:${number}`];
    if (other) {
      if (other.append) fs.appendFileSync(other.append, other.text);
      if (other.create) fs.writeFileSync(other.create, other.text, { flag: "wx" });
    }
    if (job.refuse?.[label]) {
      throw Object.assign(new Error(`${job.refuse[label]}: refused`), { code: job.refuse[label] });
    }
    if (job.slow === label && !delayed.has(label)) {
      delayed.add(label);
      await adapter.write("saved.md", "while a copy is made");
      delayed.add("saved");
      await new Promise((done) => setTimeout(done, 1100));
    }
    return original.apply(this, given);
  };
}

function folders(base) {
  const found = [new obsidian.TFolder("/")];
  const look = (at) => {
    for (const entry of fs.readdirSync(path.join(base, at), { withFileTypes: true })) {
      const below = path.join(at, entry.name);
      const status = fs.statSync(path.join(base, below), { throwIfNoEntry: false });
      if (entry.name.startsWith(".") || !status?.isDirectory()) continue;
      found.push(new obsidian.TFolder(below));
      look(below);
    }
  };
  look("");
  return found;
}

let ready = Promise.resolve();
const adapter = new obsidian.FileSystemAdapter(job.vault, job.books ?? true);
const app = {
  vault: { adapter, getAllLoadedFiles: () => folders(job.vault) },
  workspace: {
    onLayoutReady: (step) => {
      ready = Promise.resolve(step());
    },
  },
};

async function attempt(step) {
  try {
    await step();
    return null;
  } catch (error) {
    return { code: error.code ?? null, message: error.message };
  }
}

async function main() {
  const probe = await fs.promises.open(__filename);
  const handle = Object.getPrototypeOf(probe);
  await probe.close();
  const before = [adapter.rename, adapter.fsPromises];
  const SessionAgentMoves = require(job.plugin);
  const plugin = new SessionAgentMoves(app, {});
  await plugin.onload();
  await ready;
  for (const name of CALLS) intercept(fs.promises, name, name);
  for (const name of HANDLE_CALLS) intercept(handle, name, `handle.${name}`);
  const outcomes = [];
  for (const [verb, ...given] of job.steps ?? []) {
    if (verb === "unload") plugin.unload();
    else if (verb === "together") {
      const step = ([from, to]) => attempt(() => adapter.rename(from, to));
      outcomes.push(await Promise.all(given.map(step)));
    } else outcomes.push(await attempt(() => adapter[verb](...given)));
  }
  const now = [adapter.rename, adapter.fsPromises];
  console.log(
    JSON.stringify({
      outcomes,
      calls,
      notices: obsidian.notices,
      renamed: adapter.renamed,
      wrapped: now.some((value, index) => value !== before[index]),
      saved: delayed.has("saved"),
    }),
  );
}

main();
