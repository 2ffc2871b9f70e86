// Verifies keyless signatures with Sigstore's own library in JavaScript: bundles, and cosign's legacy form.
//
//     node verify_keyless.mjs MODULES TRUSTED_ROOT_JSON IDENTITY ISSUER FILE…
//
// A file is a bundle, or `{payload (base64), annotations}` of a legacy signature. One line a file: `verified`, or what the library threw.
import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, root, identity, issuer, ...files] = process.argv.slice(2);
const require = createRequire(`${modules}/package.json`);
const { bundleFromJSON } = require("@sigstore/bundle");
const { TrustedRoot } = require("@sigstore/protobuf-specs");
const { Verifier, toSignedEntity, toTrustMaterial } = require("@sigstore/verify");

const trust = toTrustMaterial(TrustedRoot.fromJSON(JSON.parse(readFileSync(root))));
const verifier = new Verifier(trust, { tlogThreshold: 1, ctlogThreshold: 1, timestampThreshold: 1 });
const policy = { subjectAlternativeName: identity, extensions: { issuer } };

function legacyBundle(annotations) {
  const { SignedEntryTimestamp, Payload } = JSON.parse(annotations["dev.sigstore.cosign/bundle"]);
  const entry = JSON.parse(Buffer.from(Payload.body, "base64"));
  const leaf = new X509Certificate(annotations["dev.sigstore.cosign/certificate"]).raw;
  return {
    mediaType: "application/vnd.dev.sigstore.bundle+json;version=0.1",
    verificationMaterial: {
      x509CertificateChain: { certificates: [{ rawBytes: leaf.toString("base64") }] },
      tlogEntries: [
        {
          logIndex: String(Payload.logIndex),
          logId: { keyId: Buffer.from(Payload.logID, "hex").toString("base64") },
          kindVersion: { kind: entry.kind, version: entry.apiVersion },
          integratedTime: String(Payload.integratedTime),
          inclusionPromise: { signedEntryTimestamp: SignedEntryTimestamp },
          canonicalizedBody: Payload.body,
        },
      ],
    },
    messageSignature: {
      messageDigest: { algorithm: "SHA2_256", digest: Buffer.from(entry.spec.data.hash.value, "hex").toString("base64") },
      signature: annotations["dev.cosignproject.cosign/signature"],
    },
  };
}

for (const path of files) {
  try {
    const file = JSON.parse(readFileSync(path));
    const signed = file.annotations
      ? toSignedEntity(bundleFromJSON(legacyBundle(file.annotations)), Buffer.from(file.payload, "base64"))
      : toSignedEntity(bundleFromJSON(file));
    verifier.verify(signed, policy);
    console.log("verified");
  } catch (error) {
    console.log(`${error.code ?? error.name}: ${error.message}`);
  }
}
