// Verifies Sigstore bundles made with a key, with Sigstore's own library in JavaScript.
//
//     node verify_bundle.mjs MODULES PUBLIC_KEY_PEM BUNDLE…
//
// One line a bundle: `verified`, or what the library threw.
import { createHash, createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, pem, ...bundles] = process.argv.slice(2);
const require = createRequire(`${modules}/package.json`);
const { bundleFromJSON } = require("@sigstore/bundle");
const { Verifier, toSignedEntity, toTrustMaterial } = require("@sigstore/verify");

const der = createPublicKey(readFileSync(pem)).export({ type: "spki", format: "der" });
const hint = createHash("sha256").update(der).digest("base64");
const nobody = { certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] };
const trust = toTrustMaterial(nobody, (asked) => {
  if (asked !== hint) throw new Error(`key not found: ${asked}`);
  return { publicKey: createPublicKey({ key: der, type: "spki", format: "der" }), validFor: () => true };
});
const verifier = new Verifier(trust, { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: 0 });

for (const path of bundles) {
  try {
    verifier.verify(toSignedEntity(bundleFromJSON(JSON.parse(readFileSync(path)))));
    console.log("verified");
  } catch (error) {
    console.log(`${error.code ?? error.name}: ${error.message}`);
  }
}
