// Bundles view.js with three.js into view.bundle.js. Its first line says of which view.js it was made; a test compares.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { build } from "esbuild";

const source = createHash("sha256").update(readFileSync("view.js")).digest("hex");
await build({
  entryPoints: ["view.js"],
  outfile: "view.bundle.js",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  banner: { js: `/* view.js sha256 ${source}; three.js, MIT licence, see three.LICENSE */` },
});
