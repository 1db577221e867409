// Makes built/ of the sources: one page, its script and style, and Grafana's icons where its
// components look for them. Nothing of it is committed.

import { build } from 'esbuild';
import { cpSync, rmSync, writeFileSync } from 'node:fs';

rmSync('built', { recursive: true, force: true });
await build({
  entryPoints: { viewer: 'main.tsx' },
  outdir: 'built',
  bundle: true,
  minify: true,
  jsx: 'automatic',
  define: { 'process.env.NODE_ENV': '"production"', 'process.env': '{}', global: 'window' },
  loader: { '.ttf': 'empty', '.svg': 'dataurl', '.woff': 'empty', '.woff2': 'empty' },
  logLevel: 'error',
});
cpSync('node_modules/@grafana/ui/dist/public', 'built/public/build', { recursive: true });
writeFileSync(
  'built/index.html',
  `<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <title>xskd</title>
    <link rel="icon" href="data:," />
    <link rel="stylesheet" href="/viewer.css" />
    <script>window.__grafana_public_path__ = '/public/';</script>
  </head>
  <body>
    <div id="root"></div>
    <script src="/viewer.js"></script>
  </body>
</html>
`,
);
