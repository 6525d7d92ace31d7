// A zip archive of a few files, stored and not compressed (weights do not shrink): APPNOTE.TXT 6.3, sections 4.3.7-4.3.16.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

// fields: [size in bytes, value], little-endian
function pack(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of fields) {
    size === 4 ? view.setUint32(at, value, true) : view.setUint16(at, value, true);
    at += size;
  }
  return new Uint8Array(view.buffer);
}

export function zip(files) {
  const parts = [], directory = [];
  let offset = 0;
  for (const [path, bytes] of Object.entries(files)) {
    const name = new TextEncoder().encode(path);
    const size = [[4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, name.length], [2, 0]];
    const common = [[2, 20], [2, 0x0800], [2, 0], [2, 0], [2, 0x21]]; // version, UTF-8 names, stored, 1980-01-01
    const local = pack([4, 0x04034b50], ...common, ...size);
    parts.push(local, name, bytes);
    directory.push(pack([4, 0x02014b50], [2, 20], ...common, ...size, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), name);
    offset += local.length + name.length + bytes.length;
  }
  const length = directory.reduce((sum, part) => sum + part.length, 0);
  const count = Object.keys(files).length;
  const end = pack([4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, length], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end]);
}
