// A client in TypeScript: create a collection, write rows, search them with a filter, and tell errors
// apart. The first argument is the server's address.

import { join } from "node:path";

import { call, connect, errorInfo, matrix } from "./client";
import type { CollectionConfig } from "./generated/vectorshard/v1/CollectionConfig";
import type { SearchResponse__Output as SearchResponse } from "./generated/vectorshard/v1/SearchResponse";
import type { UpsertResponse__Output as UpsertResponse } from "./generated/vectorshard/v1/UpsertResponse";

const TARGET = process.argv[2] ?? "127.0.0.1:7700";
const PROTOS = join(__dirname, "../../../protos"); // from dist/

async function main(): Promise<void> {
  const client = connect(TARGET, PROTOS);

  const config: CollectionConfig = {
    name: "drinks",
    dim: 3,
    metric: "METRIC_COSINE",
    idType: "ID_TYPE_STRING",
    filterFields: [{ name: "hot", type: "FIELD_TYPE_BOOL" }],
  };
  await call((options, done) => client.CreateCollection({ config }, options, done));

  const rows = {
    collection: "drinks",
    ids: { strings: { values: ["coffee", "tea", "lemonade"] } },
    vectors: matrix([[0.9, 0.1, 0.0], [0.8, 0.2, 0.1], [0.7, 0.1, 0.4]]),
    metadata: [true, true, false].map((hot) => ({ fields: { hot: { boolValue: hot } } })),
  };
  const written = await call<UpsertResponse>((options, done) => client.Upsert(rows, options, done));
  console.log(`${written.accepted} rows accepted`);

  const search = {
    collection: "drinks",
    queries: matrix([[1.0, 0.0, 0.0], [0.7, 0.1, 0.4]]),
    k: 2,
    filter: { equals: { field: "hot", value: { boolValue: true } } },
    token: written.token, // the search sees at least this write
  };
  const found = await call<SearchResponse>((options, done) => client.Search(search, options, done));
  let first = 0; // hits are flat, in the order of the queries
  found.counts.forEach((hits, query) => {
    const ids = found.ids?.strings?.values.slice(first, first + hits) ?? [];
    const shown = ids.map((id, place) => `${id} ${found.scores[first + place]?.toFixed(3)}`);
    console.log(`query ${query}: ${shown.join(", ")}`);
    first += hits;
  });
  console.log(`coverage ${found.receipt?.coverage}`);

  for (const [collection, dim] of [["drinks", 2], ["absent", 3]] as const) {
    const wrong = { collection, queries: matrix([Array<number>(dim).fill(1)]), k: 1 };
    try {
      await call((options, done) => client.Search(wrong, options, done));
    } catch (error) {
      const { reason, metadata } = errorInfo(error);
      if (reason === "DIMENSION_MISMATCH") console.log(`wrong dim in ${metadata?.["field"]}`);
      else if (reason === "COLLECTION_NOT_FOUND") console.log(`no collection ${collection}`);
      else throw error; // such as SHARD_UNAVAILABLE; without a reason, no server has answered
    }
  }

  await call((options, done) => client.DropCollection({ collection: "drinks" }, options, done));
  client.close();
}

main().catch((error: unknown) => {
  console.error(String(error));
  process.exit(1);
});
