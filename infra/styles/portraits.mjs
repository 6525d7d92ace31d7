// Portraits with known attributes as SVG, one JSON object per line: {"svg", "caption", "attributes"}.
//
//     node portraits.mjs STYLE COUNT FIRST_SEED
//
// Every attribute is chosen here and handed to DiceBear, so a caption is exact. What a style cannot show (coloured hair in
// notionists) is left out of its captions.

import { createAvatar } from "@dicebear/core";
import * as collection from "@dicebear/collection";

const BACKGROUNDS = { white: "ffffff", blue: "8ecae6", green: "a7c957", yellow: "ffd166", red: "ef767a", purple: "b392c7" };
const HAIR = { black: "1c1c1c", brown: "8d5524", blond: "f0c419", red: "c93305", grey: "9a9a9a", blue: "2f6fde" };
const SKIN = ["f9d5b8", "edb98a", "d08b5b", "ae5d29", "7a4a24"];

// Per style: the option of the hair's colour, of skin, of the beard's probability, and what switches glasses on and off.
const BY_PROBABILITY = { on: { glassesProbability: 100 }, off: { glassesProbability: 0 } };
const STYLES = {
  micah: {
    hair: "hairColor", skin: "baseColor", beard: "facialHairProbability", also: ["facialHairColor", "eyebrowsColor"],
    fixed: { hairProbability: 100, hair: ["fonze", "dougFunny", "dannyPhantom", "full", "pixie"] }, glasses: BY_PROBABILITY,
  },
  personas: {
    hair: "hairColor", skin: "skinColor", beard: "facialHairProbability",
    fixed: { hair: ["long", "sideShave", "shortCombover", "curlyHighTop", "bobCut", "curly", "pigtails", "curlyBun", "bobBangs",
      "bunUndercut", "fade", "straightBun", "extraLong"], facialHair: ["beardMustache", "pyramid", "walrus", "goatee"] },
    glasses: { on: { eyes: ["glasses", "sunglasses"] }, off: { eyes: ["open", "sleep", "wink", "happy"] } },
  },
  adventurer: { hair: "hairColor", skin: "skinColor", fixed: { hairProbability: 100 }, glasses: BY_PROBABILITY },
  toonHead: { hair: "hairColor", skin: "skinColor", beard: "beardProbability", fixed: { hairProbability: 100 } },
  bigSmile: {
    hair: "hairColor", skin: "skinColor",
    fixed: { hair: ["shortHair", "wavyBob", "bowlCutHair", "curlyBob", "straightHair", "braids", "bunHair", "froBun", "bangs",
      "curlyShortHair"] },
    glasses: { on: { accessories: ["glasses", "sunglasses"], accessoriesProbability: 100 }, off: { accessoriesProbability: 0 } },
  },
  miniavs: {
    hair: "hairColor", skin: "skinColor", beard: "mustacheProbability", glasses: BY_PROBABILITY,
    fixed: { hair: ["slaughter", "ponyTail", "long", "curly", "stylish", "elvis", "classic02", "classic01"] },
  },
  pixelArt: {
    hair: "hairColor", skin: "skinColor", beard: "beardProbability", glasses: BY_PROBABILITY,
    fixed: { hatProbability: 0, accessoriesProbability: 0 },
  },
  lorelei: {
    hair: "hairColor", beard: "beardProbability", glasses: BY_PROBABILITY,
    fixed: { hairAccessoriesProbability: 0, frecklesProbability: 0, skinColor: ["ffffff"] },
  },
  openPeeps: {
    skin: "skinColor", beard: "facialHairProbability",
    fixed: { maskProbability: 0, facialHair: ["full", "full2", "full3", "full4", "goatee1", "goatee2"],
      head: ["afro", "bangs", "bangs2", "bun", "bun2", "buns", "cornrows", "cornrows2", "dreads1", "dreads2", "flatTop",
        "flatTopLong", "long", "longAfro", "longBangs", "longCurly", "medium1", "medium2", "medium3", "mediumBangs",
        "mediumBangs2", "mediumBangs3", "mediumStraight", "pomp", "short1", "short2", "short3", "short4", "short5"] },
    glasses: {
      on: { accessories: ["glasses", "glasses2", "glasses3", "glasses4", "glasses5", "sunglasses", "sunglasses2"],
        accessoriesProbability: 100 },
      off: { accessoriesProbability: 0 },
    },
  },
  notionists: {
    beard: "beardProbability", glasses: BY_PROBABILITY, fixed: { gestureProbability: 0, bodyIconProbability: 0 },
  },
};

// A number in [0, 1) from a seed and a name (FNV-1a with a final mix), so that attributes do not depend on each other.
function uniform(seed, name) {
  let h = 2166136261;
  for (const c of `${seed}/${name}`) h = Math.imul(h ^ c.charCodeAt(0), 16777619);
  h ^= h >>> 16; h = Math.imul(h, 2246822507); h ^= h >>> 13; h = Math.imul(h, 3266489909); h ^= h >>> 16;
  return (h >>> 0) / 4294967296;
}
const pick = (choices, seed, name) => choices[Math.floor(uniform(seed, name) * choices.length)];

function portrait(name, seed) {
  const style = STYLES[name];
  const options = { seed: `${name}-${seed}`, size: 64, ...style.fixed };
  const attributes = {};
  if (style.hair) {
    attributes.hair = pick(Object.keys(HAIR), seed, "hair");
    for (const option of [style.hair, ...(style.also ?? [])]) options[option] = [HAIR[attributes.hair]];
  }
  if (style.skin) options[style.skin] = [pick(SKIN, seed, "skin")];
  if (style.glasses) {
    attributes.glasses = uniform(seed, "glasses") < 0.5;
    Object.assign(options, attributes.glasses ? style.glasses.on : style.glasses.off);
  }
  if (style.beard) {
    attributes.beard = uniform(seed, "beard") < 0.4;
    options[style.beard] = attributes.beard ? 100 : 0;
  }
  attributes.background = pick(Object.keys(BACKGROUNDS), seed, "background");
  options.backgroundColor = [BACKGROUNDS[attributes.background]];
  return { svg: createAvatar(collection[name], options).toString(), caption: caption(attributes), attributes };
}

function caption({ hair, glasses, beard, background }) {
  const parts = [hair && `${hair} hair`, glasses && "glasses", beard && "a beard"].filter(Boolean);
  const who = parts.length ? `a person with ${parts.join(" and ")}` : "a person";
  return `a portrait of ${who} on a ${background} background`;
}

const [name, count, first] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4] ?? 0)];
if (!STYLES[name]) {
  console.error(`unknown style ${name}; there are ${Object.keys(STYLES).join(", ")}`);
  process.exit(2);
}
const lines = [];
for (let seed = first; seed < first + count; seed++) lines.push(JSON.stringify(portrait(name, seed)));
process.stdout.write(lines.join("\n") + "\n");
