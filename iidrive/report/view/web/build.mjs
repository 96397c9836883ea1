// Bundles view.js, what it imports and three.js into view.bundle.js. Its first line says of which files it was made; a test compares.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { build } from "esbuild";

const made = ["view.js", "voxels.js", "things.js"].map((name) => `${name} sha256 ${createHash("sha256").update(readFileSync(name)).digest("hex")}`);
await build({
  entryPoints: ["view.js"],
  outfile: "view.bundle.js",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  banner: { js: `/* ${made.join("; ")}; three.js, MIT licence, see three.LICENSE */` },
});
