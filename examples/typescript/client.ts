// A channel with the options that a client of vectorshard needs, calls as promises, and errors by
// their reason. Copy this file: it depends on nothing else of the example.

import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";
import protobuf from "protobufjs";
import { dirname, join } from "node:path";

import type { ProtoGrpcType } from "./generated/vectorshard";
import type { ErrorInfo } from "./generated/google/rpc/ErrorInfo";
import type { Matrix } from "./generated/vectorshard/v1/Matrix";
import type { VectorServiceClient } from "./generated/vectorshard/v1/VectorService";

const LOADING: loader.Options = { longs: String, enums: String, defaults: true, oneofs: true };
const READS = ["Search", "Get", "Count", "List", "Explain", "DescribeCollection", "ListCollections"];

const SERVICE_CONFIG = {
  // Several addresses of one name, such as several routers, take turns.
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      // Reads may always be repeated. Writes may, too, if no other client writes the same ids.
      name: READS.map((method) => ({ service: "vectorshard.v1.VectorService", method })),
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.1s",
        maxBackoff: "1s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};

const OPTIONS: grpc.ChannelOptions = {
  "grpc.max_receive_message_length": 64 << 20, // an answer with vectors exceeds the usual 4 MB
  "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
  "grpc.keepalive_time_ms": 10_000, // load balancers forget idle connections
  "grpc.keepalive_timeout_ms": 5_000,
  "grpc.keepalive_permit_without_calls": 1,
};

/** Has google/rpc/status.proto, which the contract imports, and the messages of errors' details. */
const googleProtos = dirname(require.resolve("google-proto-files/package.json"));

/** Connect to `target`, HOST:PORT. `protos` is the folder `protos` of the project. */
export function connect(target: string, protos: string): VectorServiceClient {
  const definition = loader.loadSync("vectorshard/v1/vectorshard.proto", {
    ...LOADING,
    includeDirs: [protos, googleProtos],
  });
  const loaded = grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType;
  return new loaded.vectorshard.v1.VectorService(target, grpc.credentials.createInsecure(), OPTIONS);
}

type Done<Response> = (error: grpc.ServiceError | null, response?: Response) => void;

/**
 * Make one call, with a deadline, as a promise:
 * `call<CountResponse>((options, done) => client.Count(request, options, done))`.
 */
export function call<Response>(
  send: (options: grpc.CallOptions, done: Done<Response>) => unknown,
  timeoutMs = 10_000,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    send({ deadline: Date.now() + timeoutMs }, (error, response) =>
      error === null ? resolve(response!) : reject(error),
    );
  });
}

/** Vectors, all of one length, as the contract has them: (rows, dim) float32, little-endian. */
export function matrix(vectors: number[][]): Matrix {
  const dim = vectors[0]?.length ?? 0;
  const data = Buffer.alloc(4 * dim * vectors.length);
  vectors.flat().forEach((component, place) => data.writeFloatLE(component, 4 * place));
  return { data, dim, dtype: "D_TYPE_FLOAT32" };
}

/** Return the ErrorInfo of a failed call: its `reason` is stable. Empty if gRPC itself failed. */
export function errorInfo(error: unknown): ErrorInfo {
  const [details] = (error as grpc.ServiceError).metadata?.get("grpc-status-details-bin") ?? [];
  if (!(details instanceof Buffer)) return {};
  const root = new protobuf.Root();
  root.resolvePath = (_, file) =>
    file.startsWith("google/rpc/") ? join(googleProtos, file) : file;
  root.loadSync(["google/rpc/status.proto", "google/rpc/error_details.proto"]);
  const status = root.lookupType("google.rpc.Status").decode(details);
  for (const any of (status as unknown as { details: { type_url: string; value: Buffer }[] }).details)
    if (any.type_url.endsWith("/google.rpc.ErrorInfo"))
      return root.lookupType("google.rpc.ErrorInfo").decode(any.value) as unknown as ErrorInfo;
  return {};
}
