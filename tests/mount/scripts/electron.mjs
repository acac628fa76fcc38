// What Obsidian and other Electron programs do to a vault, with Node's own calls.
// Usage: node electron.mjs VAULT, which has the branches alpha, gamma and delta. Ends with 1 and says why
// if anything is not as on a local disk.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { constants, promises as fsp } from 'node:fs';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';

const vault = process.argv[2];
const at = (...parts) => path.join(vault, ...parts);
const fails = (code, promise) => assert.rejects(promise, { code });

// Resolves when `condition` holds; fails after some seconds.
async function until(condition, what) {
  for (let tries = 0; tries < 400; tries++) {
    if (condition()) return;
    await sleep(20);
  }
  assert.fail(`not within 8 s: ${what}`);
}

async function renames() {
  const data = 'Grüße ✓\n'.repeat(3000);
  await fsp.writeFile(at('alpha/note.md'), data);
  const before = await fsp.stat(at('alpha/note.md'));
  await fsp.rename(at('alpha/note.md'), at('gamma/note.md'));
  await fails('ENOENT', fsp.access(at('alpha/note.md')));
  const after = await fsp.stat(at('gamma/note.md'));
  assert.deepEqual([after.ino, after.size, after.mtimeMs], [before.ino, before.size, before.mtimeMs]);
  await fsp.mkdir(at('gamma/folder/below/deeper'), { recursive: true });
  await fsp.rename(at('gamma/note.md'), at('gamma/folder/below/note.md'));
  await fsp.symlink('../below/note.md', at('gamma/folder/below/link'));
  await fsp.rename(at('gamma/folder'), at('delta/moved'));
  assert.equal(await fsp.readFile(at('delta/moved/below/link'), 'utf8'), data);
  await fsp.writeFile(at('alpha/file'), '');
  await fails('ENOTDIR', fsp.rename(at('delta/moved'), at('alpha/file')));
  await fails('EISDIR', fsp.rename(at('alpha/file'), at('delta/moved')));
  await fails('EBUSY', fsp.rename(at('gamma'), at('delta'))); // a branch stays where it is
  await fsp.unlink(at('alpha/file'));
  await fsp.rm(at('delta/moved'), { recursive: true });
}

async function watching() {
  const seen = { alpha: new Map(), gamma: new Map() };
  const watchers = Object.entries(seen).map(([branch, names]) => {
    const watcher = fs.watch(at(branch), (event, name) => {
      if (!names.has(name)) names.set(name, new Set());
      names.get(name).add(event);
    });
    watcher.on('error', (error) => { throw error; });
    return watcher;
  });
  try {
    await fsp.writeFile(at('alpha/new.md'), 'made');
    await until(() => seen.alpha.get('new.md')?.has('rename'), 'creation seen');
    await until(() => seen.alpha.get('new.md')?.has('change'), 'writing seen');
    await fsp.rename(at('alpha/new.md'), at('alpha/renamed.md'));
    await until(() => seen.alpha.get('renamed.md')?.has('rename'), 'rename seen');
    await fsp.rename(at('alpha/renamed.md'), at('gamma/arrived.md'));
    await until(() => seen.gamma.get('arrived.md')?.has('rename'), 'move to another branch seen');
    seen.gamma.clear();
    await fsp.appendFile(at('gamma/arrived.md'), 'more');
    await until(() => seen.gamma.get('arrived.md')?.has('change'), 'change after a move seen');
    seen.gamma.clear();
    await fsp.unlink(at('gamma/arrived.md'));
    await until(() => seen.gamma.get('arrived.md')?.has('rename'), 'removal seen');
  } finally {
    for (const watcher of watchers) watcher.close();
  }
  for (const event of fs.readdirSync(at('alpha'))) assert.ok(!event.startsWith('.~session-agent'));
}

async function copies() {
  const data = Buffer.alloc(3_000_000, 'attachment ');
  await fsp.writeFile(at('alpha/from'), data, { mode: 0o640 });
  for (const branch of ['alpha', 'gamma', 'delta']) {
    const to = at(branch, 'to');
    await fsp.copyFile(at('alpha/from'), to);
    assert.ok(data.equals(await fsp.readFile(to)));
    assert.equal((await fsp.stat(to)).mode & 0o777, 0o640);
    await fails('EEXIST', fsp.copyFile(at('alpha/from'), to, constants.COPYFILE_EXCL));
    await fsp.copyFile(at('alpha/from'), to, constants.COPYFILE_FICLONE); // a wish
    await fsp.mkdir(at(branch, 'tree/below'), { recursive: true });
    await fsp.copyFile(to, at(branch, 'tree/below/file'));
    await fsp.symlink('below/file', at(branch, 'tree/link'));
    await fsp.cp(at(branch, 'tree'), at('delta/copy of tree'),
      { recursive: true, preserveTimestamps: true, verbatimSymlinks: true });
    assert.ok(data.equals(await fsp.readFile(at('delta/copy of tree/link'))));
    assert.equal(await fsp.readlink(at('delta/copy of tree/link')), 'below/file');
    for (const gone of [to, at(branch, 'tree'), at('delta/copy of tree')]) {
      await fsp.rm(gone, { recursive: true });
    }
  }
  await pipeline(fs.createReadStream(at('alpha/from')), fs.createWriteStream(at('gamma/streamed')));
  assert.ok(data.equals(await fsp.readFile(at('gamma/streamed'))));
  await fsp.unlink(at('alpha/from'));
  await fsp.unlink(at('gamma/streamed'));
}

// A program that saves beside and renames over: whoever reads meanwhile finds the old or the new.
async function saving(branch) {
  const note = at(branch, 'saved.md');
  const version = (number) => `${number}:${'x'.repeat(number * 61)}`;
  await fsp.writeFile(note, version(0));
  let done = false;
  let read = 0;
  const reader = (async () => {
    while (!done) {
      const text = await fsp.readFile(note, 'utf8');
      assert.equal(text, version(Number(text.split(':')[0])), 'a mixture was read');
      read++;
    }
  })();
  const saver = (async () => {
    try {
      for (let number = 1; number <= 300; number++) {
        const beside = `${note}.${number}.tmp`;
        const file = await fsp.open(beside, 'wx', 0o600);
        await file.writeFile(version(number));
        if (number % 10 === 0) await file.sync();
        await file.close();
        await fsp.rename(beside, note);
        assert.equal((await fsp.stat(note)).size, version(number).length);
      }
    } finally {
      done = true;
    }
  })();
  await Promise.all([reader, saver]);
  assert.ok(read > 20, `read only ${read} times`);
  assert.deepEqual((await fsp.readdir(at(branch))).filter((name) => name.startsWith('saved')), ['saved.md']);
  await fsp.unlink(note);
}

async function theRest() {
  const folder = await fsp.mkdtemp(at('alpha/temporary-'));
  const file = path.join(folder, 'ünï.md');
  await fsp.writeFile(file, 'one');
  await fails('EEXIST', fsp.writeFile(file, 'two', { flag: 'wx' }));
  await fsp.appendFile(file, ' two');
  await fsp.truncate(file, 5);
  assert.equal(await fsp.readFile(file, 'utf8'), 'one t');
  await fsp.utimes(file, 1e9, 1.5e9);
  const status = await fsp.stat(file, { bigint: true });
  assert.deepEqual([status.atimeNs, status.mtimeNs], [10n ** 18n, 15n * 10n ** 17n]);
  assert.ok(Number.isSafeInteger((await fsp.stat(file)).ino), 'Electron tells files apart by a number');
  assert.equal(await fsp.realpath(path.join(folder, '../..', 'alpha')), at('alpha'));
  assert.deepEqual((await fsp.readdir(folder, { withFileTypes: true })).map((e) => [e.name, e.isFile()]),
    [['ünï.md', true]]);
  await fails('ENOTEMPTY', fsp.rmdir(folder));
  await fails('ENAMETOOLONG', fsp.writeFile(path.join(folder, 'x'.repeat(256)), ''));
  await fails('EROFS', fsp.writeFile(at('readonly/new'), ''));
  await fsp.link(file, path.join(folder, 'link'));
  await fails('EXDEV', fsp.link(file, at('gamma/link')));
  await fsp.rm(folder, { recursive: true });
  await fails('ENOENT', fsp.opendir(folder));
}

const parts = { renames, watching, copies, theRest,
  saving: () => Promise.all(['alpha', 'gamma', 'delta'].map(saving)) };
await parts[process.argv[3]]();
