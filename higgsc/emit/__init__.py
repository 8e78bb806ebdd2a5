"""Plan in, files out: each emitter is a pure function from a build to `{path: text}`."""
