"use strict";
// As much of Obsidian as the plugin meets: its adapter keeps books of what it renames itself, does one
// thing after the other, and knows nothing of EXDEV.

const fs = require("fs");
const path = require("path");

const notices = [];

class Notice {
  constructor(message, duration) {
    this.entry = { messages: [message], duration, hidden: false };
    notices.push(this.entry);
  }

  setMessage(message) {
    this.entry.messages.push(message);
    return this;
  }

  hide() {
    this.entry.hidden = true;
  }
}

class Plugin {
  constructor(app, manifest) {
    this.app = app;
    this.manifest = manifest;
    this.undo = [];
  }

  register(step) {
    this.undo.push(step);
  }

  unload() {
    while (this.undo.length) this.undo.pop()();
    this.onunload?.();
  }
}

class TFolder {
  constructor(at) {
    this.path = at;
  }
}

class FileSystemAdapter {
  constructor(base, books) {
    this.base = base;
    this.renamed = [];
    this.last = Promise.resolve();
    if (books) this.fsPromises = fs.promises;
  }

  getBasePath() {
    return this.base;
  }

  getFullPath(at) {
    return path.join(this.base, at);
  }

  queue(step) {
    const next = this.last.then(step, step);
    this.last = next;
    return next;
  }

  rename(from, to) {
    return this.queue(async () => {
      if (fs.existsSync(this.getFullPath(to))) throw new Error("Destination file already exists!");
      const rename = (this.fsPromises ?? fs.promises).rename;
      await rename(this.getFullPath(from), this.getFullPath(to));
      this.renamed.push([from, to]);
    });
  }

  trashLocal(at) {
    return this.queue(async () => {
      await fs.promises.mkdir(this.getFullPath(".trash"), { recursive: true });
      const to = this.getFullPath(path.join(".trash", path.basename(at)));
      await this.fsPromises.rename(this.getFullPath(at), to);
    });
  }

  write(at, text) {
    return this.queue(() => fs.promises.writeFile(this.getFullPath(at), text));
  }
}

module.exports = { FileSystemAdapter, Notice, Plugin, TFolder, notices };
