"use strict";
// Moves between drives in a vault that is made of several mounts.
//
// A rename from one mount to another fails with EXDEV, which Obsidian does not handle. Here it becomes:
// copy to a reserved name beside the target, make that durable, put it in place without replacing
// anything, and remove the source, each file only if it is still what was copied. Until the copy is in
// place the source is whole; from then on the target is. So whatever bears a reserved name is garbage.
//
// Obsidian loads this one file as it is; there is no build step.

const { FileSystemAdapter, Notice, Plugin, TFolder } = require("obsidian");
const crypto = require("crypto");
const os = require("os");
const path = require("path");

/**
 * Electron's own `fs` shows *.asar files as folders.
 * @type {typeof import("fs")}
 */
const fs = require(process.versions.electron ? "original-fs" : "fs");
const files = fs.promises;

const AGENT_FSTYPE = "fuse.session-agent";
const RESERVED = ".~session-agent-note-";
const RESERVED_NAME = /^\.~session-agent-note-([0-9a-f]{12})-(\d+)-([0-9a-z]+)-[0-9a-f]{12}$/;
const STALE_MS = 24 * 60 * 60 * 1000; // of another host's leftovers: it may still be copying
const ATTEMPTS = 3; // for a source that is written to meanwhile
const AT_ONCE = 4; // files; as many as Node has threads for
const CHUNK = 1024 * 1024; // bytes
const PATIENCE_MS = 1000; // a move that takes longer shows how far it is
const TOLD = 5; // names in one notice

// What file systems answer that know no hard links: FAT, SMB, rclone.
const NO_LINKS = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK"]);
const NO_FOLDER_SYNC = new Set(["EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"]);

/**
 * One file, folder or link of the source. `relative` is "" for the source itself.
 * @typedef {{relative: string, kind: "file" | "folder" | "link", status: import("fs").BigIntStats}} Entry
 */

/**
 * A complete, durable copy under a reserved name; `copied` are its own sizes and times. Once `begun`,
 * it is `commit` that sees to its end.
 * @typedef {{source: string, target: string, stage: string, entries: Entry[],
 *            copied: Map<string, import("fs").BigIntStats>, begun: boolean}} Staged
 */

/**
 * Told how much has been copied.
 * @typedef {(done: {files: number, bytes: number}, all: {files: number, bytes: number}) => void} Progress
 */

/** The source is not any more what was copied. */
class ChangedError extends Error {}

/**
 * An error as Node's own are, with a message for people.
 * @param {string} code
 * @param {string} message
 */
function failure(code, message) {
  return Object.assign(new Error(message), { code });
}

/**
 * @param {unknown} error
 * @returns {string}
 */
function codeOf(error) {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}

// ---- Mounts

/**
 * All mounts as [path, file system type], in the order they were made.
 * @returns {[string, string][]}
 */
function mounts() {
  const lines = fs.readFileSync("/proc/self/mountinfo", "utf8").trimEnd().split("\n");
  return lines.map((line) => {
    const words = line.split(" ");
    const place = words[4].replace(/\\([0-7]{3})/g, (_, octal) =>
      String.fromCharCode(parseInt(octal, 8)),
    );
    return [place, words[words.indexOf("-") + 1]];
  });
}

/**
 * @param {string} place
 * @param {string} folder
 */
function within(place, folder) {
  return place === folder || place.startsWith(folder.replace(/\/$/, "") + "/");
}

/**
 * Whether the vault is the agent's own mount, which moves by itself. Branches do not count: rclone's
 * are FUSE too.
 * @param {string} vault
 */
function servedByAgent(vault) {
  const real = fs.realpathSync(vault);
  let found = ["", ""];
  for (const mount of mounts()) {
    if (within(real, mount[0]) && mount[0].length >= found[0].length) found = mount;
  }
  return found[1] === AGENT_FSTYPE;
}

// ---- Copying

/**
 * Everything to be moved, folders before what is in them. Refuses what cannot be moved as a whole.
 * @param {string} source
 * @param {string} target
 */
async function survey(source, target) {
  const folder = await files.realpath(path.dirname(source));
  const real = path.join(folder, path.basename(source));
  if (within(await files.realpath(path.dirname(target)), real)) {
    throw failure("EINVAL", "a folder cannot be moved into itself");
  }
  if (mounts().some(([place]) => within(place, real))) {
    throw failure("EBUSY", "another drive is mounted there, so it cannot be moved as a whole");
  }
  await files.access(folder, fs.constants.W_OK | fs.constants.X_OK);
  /** @type {Entry[]} */
  const entries = [];
  /** @param {string} relative */
  async function look(relative) {
    const place = path.join(source, relative);
    const status = await files.lstat(place, { bigint: true });
    if (status.isDirectory()) {
      await files.access(place, fs.constants.R_OK | fs.constants.W_OK | fs.constants.X_OK);
      entries.push({ relative, kind: "folder", status });
      for (const name of await files.readdir(place)) await look(path.join(relative, name));
    } else if (status.isFile() || status.isSymbolicLink()) {
      entries.push({ relative, kind: status.isFile() ? "file" : "link", status });
    } else {
      throw failure("EINVAL", `${relative || path.basename(source)} is no file, folder or link`);
    }
  }
  await look("");
  return entries;
}

/**
 * @param {import("fs").BigIntStats} one
 * @param {import("fs").BigIntStats} other
 */
function same(one, other) {
  // No inode numbers: rclone's come and go.
  return one.mode === other.mode && one.size === other.size && one.mtimeNs === other.mtimeNs;
}

/** @param {import("fs").BigIntStats} status */
function times(status) {
  /** @param {bigint} ns */
  const seconds = (ns) => Number(ns) / 1e9;
  return /** @type {const} */ ([seconds(status.atimeNs), seconds(status.mtimeNs)]);
}

/** @param {import("fs").BigIntStats} status */
function permissions(status) {
  return Number(status.mode) & 0o777;
}

/**
 * @param {Entry} entry
 * @param {string} from
 * @param {string} to
 * @param {(bytes: number) => void} tell
 */
async function copyFile(entry, from, to, tell) {
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
  // Without O_NONBLOCK a FIFO that took the file's place would stop us for ever.
  const input = await files.open(from, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  try {
    if (!same(await input.stat({ bigint: true }), entry.status)) throw new ChangedError(from);
    const output = await files.open(to, "wx", 0o600);
    try {
      const buffer = Buffer.allocUnsafe(Math.min(CHUNK, Number(entry.status.size) + 1));
      for (;;) {
        const { bytesRead } = await input.read(buffer, 0, buffer.length, null);
        if (bytesRead === 0) break;
        for (let written = 0; written < bytesRead; ) {
          written += (await output.write(buffer, written, bytesRead - written, null)).bytesWritten;
        }
        tell(bytesRead);
      }
      await output.chmod(permissions(entry.status));
      await output.utimes(...times(entry.status));
      await output.sync();
    } finally {
      await output.close(); // where some network file systems first say that there is no space
    }
    if (!same(await input.stat({ bigint: true }), entry.status)) throw new ChangedError(from);
  } finally {
    await input.close();
  }
}

/** @param {string} folder */
async function syncFolder(folder) {
  const handle = await files.open(folder, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  try {
    await handle.sync();
  } catch (error) {
    if (!NO_FOLDER_SYNC.has(codeOf(error))) throw error;
  } finally {
    await handle.close();
  }
}

/**
 * Which process of which machine since its start makes the copy: in the reserved name, so that nobody
 * removes what is still being made.
 */
function maker() {
  const parts = [os.hostname()];
  for (const read of [
    () => fs.readFileSync("/proc/sys/kernel/random/boot_id", "utf8"),
    () => fs.readlinkSync("/proc/self/ns/pid"),
  ]) {
    try {
      parts.push(read());
    } catch {
      parts.push(crypto.randomUUID()); // nobody's, then: its leftovers go by their age
    }
  }
  return crypto.createHash("sha256").update(parts.join("\n")).digest("hex").slice(0, 12);
}

const MAKER = maker();

/** @param {string} target */
function stageName(target) {
  const words = [MAKER, process.pid, Date.now().toString(36), crypto.randomBytes(6).toString("hex")];
  return path.join(path.dirname(target), RESERVED + words.join("-"));
}

/**
 * Copy `source` beside `target`, durably. What fails leaves nothing behind.
 * @param {string} source
 * @param {string} target
 * @param {Progress} tell
 * @returns {Promise<Staged>}
 */
async function stage(source, target, tell) {
  const entries = await survey(source, target);
  const copy = stageName(target);
  /** @type {Staged} */
  const staged = { source, target, stage: copy, entries, copied: new Map(), begun: false };
  const all = { files: 0, bytes: 0 };
  for (const { kind, status } of entries) {
    if (kind !== "folder") all.files += 1;
    if (kind === "file") all.bytes += Number(status.size);
  }
  const done = { files: 0, bytes: 0 };
  const queue = entries.filter((entry) => entry.kind === "file");
  const work = async () => {
    for (let entry = queue.pop(); entry; entry = queue.pop()) {
      const from = path.join(source, entry.relative);
      await copyFile(entry, from, path.join(copy, entry.relative), (bytes) => {
        done.bytes += bytes;
        tell(done, all);
      });
      done.files += 1;
    }
  };
  try {
    for (const { kind, relative, status } of entries) {
      const to = path.join(copy, relative);
      if (kind === "folder") await files.mkdir(to, 0o700);
      if (kind === "link") {
        const text = await files.readlink(path.join(source, relative), { encoding: "buffer" });
        await files.symlink(text, to);
        await files.lutimes(to, ...times(status)).catch(() => undefined); // not everywhere known
        done.files += 1;
      }
    }
    // All of them end before the copy is given up: none may write into what is being removed.
    const ends = await Promise.allSettled(Array.from({ length: AT_ONCE }, work));
    for (const end of ends) if (end.status === "rejected") throw end.reason;
    for (const { kind, relative, status } of [...entries].reverse()) {
      const to = path.join(copy, relative);
      if (kind === "folder") {
        await files.chmod(to, permissions(status));
        await files.utimes(to, ...times(status));
        await syncFolder(to);
      }
      staged.copied.set(relative, await files.lstat(to, { bigint: true }));
    }
    await syncFolder(path.dirname(copy));
    return staged;
  } catch (error) {
    await removeTree(copy);
    throw error;
  }
}

/**
 * Remove a copy of ours. Follows no link; what cannot be removed stays, and is looked at again when
 * Obsidian starts next.
 * @param {string} place
 */
async function removeTree(place) {
  try {
    const status = await files.lstat(place);
    if (!status.isDirectory()) {
      await files.unlink(place);
      return;
    }
    await files.chmod(place, 0o700);
    for (const name of await files.readdir(place)) await removeTree(path.join(place, name));
    await files.rmdir(place);
  } catch (error) {
    if (codeOf(error) !== "ENOENT") console.warn(`session-agent-moves: ${place}`, error);
  }
}

// ---- The commit

/** @param {string} place */
async function exists(place) {
  try {
    await files.lstat(place);
    return true;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return false;
    throw error;
  }
}

/**
 * Give the copy its name, unless that is taken.
 * @param {Staged} staged
 */
async function place({ stage: copy, target, entries }) {
  if (entries[0].kind !== "folder") {
    try {
      await files.link(copy, target);
      await files.unlink(copy).catch(() => undefined);
      return;
    } catch (error) {
      if (!NO_LINKS.has(codeOf(error))) throw error;
    }
  }
  // Node knows no rename that never replaces. What comes in between here must be quick, or an empty
  // folder, which is no loss.
  if (await exists(target)) throw failure("EEXIST", "there is something of that name");
  await files.rename(copy, target);
}

/** @param {Staged} staged */
async function refuseChanged({ source, entries }) {
  for (const { relative, kind, status } of entries) {
    const now = await files.lstat(path.join(source, relative), { bigint: true });
    if (kind !== "folder" && !same(now, status)) throw new ChangedError(relative);
  }
}

/**
 * Remove what was copied and is still the same. Returns what had to be kept; throws if nothing at all
 * could be removed.
 * @param {Staged} staged
 * @param {() => void} alive
 */
async function retire({ source, entries }, alive) {
  /** @type {string[]} */
  const kept = [];
  let removed = 0;
  for (const { relative, kind, status } of [...entries].reverse()) {
    const at = path.join(source, relative);
    alive();
    try {
      if (kind === "folder") {
        await files.rmdir(at);
      } else if (same(await files.lstat(at, { bigint: true }), status)) {
        await files.unlink(at);
      } else {
        kept.push(at);
        continue;
      }
      removed += 1;
    } catch (error) {
      if (codeOf(error) === "ENOENT") continue;
      if (removed === 0) throw error;
      kept.push(at);
    }
  }
  return kept;
}

/**
 * Whether the tree is what was copied, and nothing else.
 * @param {string} top
 * @param {Staged} staged
 */
async function untouched(top, { copied }) {
  let seen = 0;
  /** @param {string} relative @returns {Promise<boolean>} */
  async function look(relative) {
    const known = copied.get(relative);
    const status = await files.lstat(path.join(top, relative), { bigint: true });
    if (!known || !same(known, status)) return false;
    seen += 1;
    if (!status.isDirectory()) return true;
    for (const name of await files.readdir(path.join(top, relative))) {
      if (!(await look(path.join(relative, name)))) return false;
    }
    return true;
  }
  return (await look("")) && seen === copied.size;
}

/**
 * Take the copy back, the source being whole. Returns false where somebody has changed it already: it
 * is theirs then, and stays.
 * @param {Staged} staged
 */
async function takeBack(staged) {
  if (!(await untouched(staged.target, staged))) return false;
  await files.rename(staged.target, staged.stage);
  if (await untouched(staged.stage, staged)) {
    await removeTree(staged.stage);
    return true;
  }
  const taken = await exists(staged.target);
  await files.rename(staged.stage, taken ? `${staged.target} (${Date.now()})` : staged.target);
  return false;
}

/**
 * Put the copy in place and remove the source. Returns what of the source had to be kept. What fails
 * leaves the source as it was, and no copy.
 * @param {Staged} staged
 * @param {() => void} alive
 */
async function commit(staged, alive) {
  staged.begun = true;
  try {
    await refuseChanged(staged);
    await place(staged);
  } catch (error) {
    await removeTree(staged.stage);
    throw error;
  }
  try {
    await syncFolder(path.dirname(staged.target));
    const kept = await retire(staged, alive);
    await syncFolder(path.dirname(staged.source)).catch(() => undefined); // at worst both are there
    return kept;
  } catch (error) {
    if (await takeBack(staged)) throw error;
    return [staged.source];
  }
}

// ---- Leftovers

/**
 * Whether a name is that of a copy which nobody is making any more.
 * @param {string} name
 * @param {number} now
 */
function isLeftover(name, now) {
  const match = RESERVED_NAME.exec(name);
  if (!match) return false;
  if (match[1] === MAKER) {
    try {
      process.kill(Number(match[2]), 0);
    } catch (error) {
      if (codeOf(error) === "ESRCH") return true;
    }
    if (Number(match[2]) === process.pid) return false;
  }
  return now - parseInt(match[3], 36) > STALE_MS;
}

/**
 * Remove the leftovers in these folders, one folder after the other: nobody waits for it.
 * @param {string[]} folders
 */
async function sweep(folders) {
  for (const folder of folders) {
    const names = await files.readdir(folder).catch(() => []);
    for (const name of names) {
      if (isLeftover(name, Date.now())) await removeTree(path.join(folder, name));
    }
  }
}

// ---- In Obsidian

/**
 * What Obsidian's adapter is beyond its published description: all calls wait for each other in a
 * queue, which gives a call up when for a minute nobody has said that `thingsHappening`.
 * @typedef {FileSystemAdapter & {fsPromises?: typeof files, thingsHappening?: () => void}} Adapter
 */

/** A notice of how far a move is, from the second it takes longer. */
class Meter {
  /** @param {string} name */
  constructor(name) {
    this.name = name;
    this.begun = Date.now();
    /** @type {Notice | null} */
    this.notice = null;
  }

  /** @type {Progress} */
  show(done, all) {
    if (Date.now() - this.begun < PATIENCE_MS) return;
    const percent = all.bytes ? Math.min(100, Math.floor((100 * done.bytes) / all.bytes)) : 100;
    const text = `Moving “${this.name}”: ${percent} %, ${done.files} of ${all.files} files`;
    this.notice ??= new Notice(text, 0);
    this.notice.setMessage(text);
  }

  end() {
    this.notice?.hide();
  }
}

class SessionAgentMoves extends Plugin {
  active = false;

  /**
   * By source and target: the copy that is ready, or null while Obsidian's own rename is being tried.
   * @type {Map<string, Staged | null>}
   */
  waiting = new Map();

  async onload() {
    const adapter = /** @type {Adapter} */ (this.app.vault.adapter);
    if (process.platform !== "linux" || !(adapter instanceof FileSystemAdapter)) return;
    if (servedByAgent(adapter.getBasePath())) return;
    this.active = true;
    this.register(() => {
      this.active = false;
    });
    this.wrapRename(adapter);
    if (adapter.fsPromises) this.wrapFiles(adapter, adapter.fsPromises);
    this.app.workspace.onLayoutReady(() => this.sweep(adapter));
  }

  /**
   * Copies first, outside of the adapter's queue, so that saving goes on meanwhile.
   * @param {Adapter} adapter
   */
  wrapRename(adapter) {
    const own = Object.hasOwn(adapter, "rename");
    const original = adapter.rename;
    /** @type {typeof original} */
    const wrapped = async (from, to) => {
      if (!this.active) return original.call(adapter, from, to);
      const source = adapter.getFullPath(from);
      const target = adapter.getFullPath(to);
      const key = `${source}\0${target}`;
      if (this.waiting.has(key)) return original.call(adapter, from, to);
      this.waiting.set(key, null);
      try {
        await original.call(adapter, from, to);
      } catch (error) {
        if (!this.crosses(error, adapter)) throw error;
        await this.move(adapter, source, target, async (staged) => {
          if (!adapter.fsPromises) return this.finish(adapter, staged);
          // Ends in the wrapped `fsPromises.rename`, and so keeps Obsidian's own books: links to
          // what was moved are updated, and its tabs stay open.
          this.waiting.set(key, staged);
          await original.call(adapter, from, to);
        });
      } finally {
        this.waiting.delete(key);
      }
    };
    adapter.rename = wrapped;
    this.register(() => {
      if (adapter.rename !== wrapped) return; // wrapped by somebody else since
      if (own) adapter.rename = original;
      else Reflect.deleteProperty(adapter, "rename");
    });
  }

  /**
   * @param {Adapter} adapter
   * @param {typeof files} original
   */
  wrapFiles(adapter, original) {
    /** @type {typeof files} */
    const wrapped = Object.create(original);
    wrapped.rename = async (from, to) => {
      try {
        await original.rename(from, to);
      } catch (error) {
        if (!this.active || !this.crosses(error, adapter)) throw error;
        const [source, target] = [String(from), String(to)];
        const staged = this.waiting.get(`${source}\0${target}`);
        if (staged === null) throw error;
        if (staged && !staged.begun) await this.finish(adapter, staged);
        // Not by `rename`: to Obsidian's own trash.
        else await this.move(adapter, source, target, (copy) => this.finish(adapter, copy));
      }
    };
    adapter.fsPromises = wrapped;
    this.register(() => {
      if (adapter.fsPromises === wrapped) adapter.fsPromises = original;
    });
  }

  /**
   * @param {unknown} error
   * @param {Adapter} adapter
   */
  crosses(error, adapter) {
    // The agent may have come meanwhile; what it refuses is not to be had by another way.
    return codeOf(error) === "EXDEV" && !servedByAgent(adapter.getBasePath());
  }

  /**
   * Copy, then `end` with that copy; again, a few times, if the source is written to meanwhile.
   * @param {Adapter} adapter
   * @param {string} source
   * @param {string} target
   * @param {(staged: Staged) => Promise<void>} end
   */
  async move(adapter, source, target, end) {
    const name = path.basename(source);
    const meter = new Meter(name);
    try {
      for (let attempt = 1; ; attempt += 1) {
        try {
          const staged = await stage(source, target, (done, all) => {
            adapter.thingsHappening?.();
            meter.show(done, all);
          });
          try {
            await end(staged);
          } finally {
            if (!staged.begun) await removeTree(staged.stage);
          }
          return;
        } catch (error) {
          if (!(error instanceof ChangedError) || attempt === ATTEMPTS) throw error;
        }
      }
    } catch (error) {
      const why = error instanceof ChangedError ? "it is being changed" : String(error);
      new Notice(`“${name}” was not moved, and is where it was: ${why}`, 10_000);
      throw error instanceof ChangedError ? failure("EBUSY", `${name}: ${why}`) : error;
    } finally {
      meter.end();
    }
  }

  /**
   * @param {Adapter} adapter
   * @param {Staged} staged
   */
  async finish(adapter, staged) {
    const kept = await commit(staged, () => adapter.thingsHappening?.());
    if (kept.length === 0) return;
    // Obsidian takes the old name for gone; this makes it look again.
    const now = new Date();
    await files.utimes(path.dirname(kept[0]), now, now).catch(() => undefined);
    const more = kept.length > TOLD ? ` and ${kept.length - TOLD} more` : "";
    new Notice(
      `“${path.basename(staged.source)}” was copied, but what has changed meanwhile or could not be ` +
        `removed was kept: ${kept.slice(0, TOLD).join(", ")}${more}`,
      0,
    );
  }

  /** @param {Adapter} adapter */
  async sweep(adapter) {
    const folders = this.app.vault.getAllLoadedFiles().filter((file) => file instanceof TFolder);
    await sweep([...folders.map((file) => file.path), ".trash"].map((at) => adapter.getFullPath(at)));
  }
}

module.exports = SessionAgentMoves;
