// Asks a deployment: over HTTP, or through a RunPod queue, where it always comes to an end.
//
//   const answer = await prompt("http://localhost:3000", key, { prompt: "What is this?", context: { document }, labels });
//   const output = await new Queue(endpointId, runpodKey).ask({ prompt: "…", context: { document } });
//
// Copy it into your project: it needs fetch and nothing else.

/** Why there is no answer. */
export type Kind =
  | "too_large" // more bytes than RunPod takes; nothing was sent
  | "refused" // not taken; asking the same again is of no use, unless `retryable`
  | "unreachable" // the connection broke before it was said whether it was taken
  | "failed" // the job has failed; `errorType` is the service's own, "" where RunPod itself says why
  | "cancelled" // somebody has cancelled it
  | "timed_out" // it took longer than the endpoint's execution timeout
  | "expired" // RunPod knows no such job any more
  | "deadline_exceeded" // not done in the time that it was given, and cancelled
  | "unknown_status"; // a status that this client has never heard of

export interface Details {
  job?: string;
  errorType?: string;
  retryable?: boolean;
}

export class AskError extends Error {
  readonly job: string;
  readonly errorType: string;
  readonly retryable: boolean;

  constructor(
    readonly kind: Kind,
    message: string,
    details: Details = {},
  ) {
    super(message);
    this.job = details.job ?? "";
    this.errorType = details.errorType ?? "";
    this.retryable = details.retryable ?? false;
  }
}

type Told = Record<string, unknown>;
type Answer = { ok: boolean; status: number; retryAfter: string; told: Told };

const LIMITS = { run: 10_000_000, runsync: 20_000_000 }; // bytes of a request
const WAITING = ["IN_QUEUE", "IN_PROGRESS", "RUNNING"];
const HTTP_MS = 30_000;
const WEEK_MS = 7 * 24 * 3600_000;

/**
 * The answer of /prompt: `output` is JSON in a string, `metadata` says where it comes from. `runpodKey` is what a load
 * balancer asks for before the service asks for its own.
 */
export async function prompt(url: string, key: string, body: object, seconds = 300, runpodKey = ""): Promise<Told> {
  const keys = { ...(key && { "X-API-Key": key }), ...(runpodKey && { Authorization: `Bearer ${runpodKey}` }) };
  const headers = { "Content-Type": "application/json", ...keys };
  const signal = AbortSignal.timeout(1000 * seconds);
  const response = await send(`${url}/prompt`, { method: "POST", headers, body: JSON.stringify(body), signal }).catch(
    (error: unknown) => {
      throw new AskError("unreachable", `${error}`);
    },
  );
  const { told } = response;
  if (response.ok && told.success === true) return told;
  // A pod's proxy waits 100 seconds: what takes longer has become a job, see jobs.py.
  if (response.status === 202) throw new AskError("deadline_exceeded", `it goes on at ${told.location}`);
  const details = { errorType: String(told.error_type ?? ""), retryable: told.retryable === true };
  throw new AskError("refused", `HTTP ${response.status}: ${told.error}`, details);
}

/** One queue endpoint. Every method ends within its seconds and one HTTP timeout. */
export class Queue {
  constructor(
    private readonly endpoint: string,
    private readonly key: string,
    private readonly url = "https://api.runpod.ai/v2",
    private readonly firstPollMs = 1000,
    private readonly longestPollMs = 5000,
  ) {}

  /** The output for this input. `runsync` answers short ones sooner and takes 20 MB, not 10. */
  async ask(input: object, seconds = 900, operation: "run" | "runsync" = "run"): Promise<unknown> {
    const end = Date.now() + 1000 * seconds;
    // Should every cancellation be lost, RunPod forgets the job by itself.
    const body = JSON.stringify({ input, policy: { ttl: Math.min(WEEK_MS, 1000 * (seconds + 60)) } });
    const size = new TextEncoder().encode(body).length;
    if (size > LIMITS[operation]) {
      throw new AskError("too_large", `the request has ${size} bytes; /${operation} takes at most ${LIMITS[operation]}`);
    }
    return this.follow(await this.submit(operation, body, end), end);
  }

  /** The output of a job that was submitted before. */
  async wait(job: string, seconds = 900): Promise<unknown> {
    return this.follow({ id: job, status: "IN_QUEUE" }, Date.now() + 1000 * seconds);
  }

  /** As far as it can be: what is lost here ends by its ttl. */
  async cancel(job: string): Promise<void> {
    await this.call("POST", `cancel/${job}`).catch(() => undefined);
  }

  /** The job as it was taken. Sent again only where it was certainly not taken. */
  private async submit(operation: "run" | "runsync", body: string, end: number): Promise<Told> {
    for (;;) {
      const path = operation === "run" ? operation : "runsync?wait=20000";
      const response = await this.call("POST", path, body).catch((error: unknown) => {
        throw new AskError("unreachable", `${error}: it may have been taken`);
      });
      if (response.ok) return readJob(response);
      if (response.status >= 500) throw new AskError("unreachable", `HTTP ${response.status}: it may have been taken`);
      if (response.status !== 429) throw new AskError("refused", `HTTP ${response.status}`);
      const pause = this.retryAfter(response);
      if (Date.now() + pause >= end) throw new AskError("deadline_exceeded", "it could not be submitted in time");
      await sleep(pause);
    }
  }

  /** Poll until it is final; 1 second at first, 5 at last, never all clients at the same moment. */
  private async follow(told: Told, end: number): Promise<unknown> {
    const job = String(told.id);
    for (let pause = this.firstPollMs; WAITING.includes(String(told.status)); ) {
      const left = end - Date.now();
      if (left <= 0) {
        await this.cancel(job);
        throw new AskError("deadline_exceeded", `it was ${told.status} when its time was up`, { job });
      }
      await sleep(Math.min(left, pause * (0.8 + 0.4 * Math.random())));
      pause = Math.min(this.longestPollMs, 1.5 * pause);
      told = (await this.poll(job, end)) ?? told;
    }
    return conclude(told, job);
  }

  /** What is said of the job; undefined where nothing is, for now. */
  private async poll(job: string, end: number): Promise<Told | undefined> {
    const response = await this.call("GET", `status/${job}`).catch(() => undefined);
    if (response === undefined || response.status >= 500) return undefined;
    if (response.ok) return readJob(response);
    if (response.status === 404) throw new AskError("expired", "there is no such job, or not any more", { job });
    if (response.status !== 429) throw new AskError("refused", `HTTP ${response.status}`, { job });
    await sleep(Math.max(0, Math.min(end - Date.now(), this.retryAfter(response))));
    return undefined;
  }

  private call(method: string, path: string, body?: string): Promise<Answer> {
    const headers = { Authorization: `Bearer ${this.key}`, "Content-Type": "application/json" };
    const signal = AbortSignal.timeout(HTTP_MS);
    return send(`${this.url}/${this.endpoint}/${path}`, { method, headers, signal, ...(body !== undefined && { body }) });
  }

  private retryAfter({ retryAfter }: Answer): number {
    return /^\d+$/.test(retryAfter) ? 1000 * Number(retryAfter) : this.longestPollMs;
  }
}

/** The output of a job in its final state, or what that state means. */
function conclude(told: Told, job: string): unknown {
  switch (told.status) {
    case "COMPLETED":
      if (!("output" in told)) throw new AskError("failed", "COMPLETED, but without an output", { job });
      return told.output;
    case "FAILED":
      throw failure(told.error, job);
    case "CANCELLED":
      throw new AskError("cancelled", "it was cancelled", { job });
    case "TIMED_OUT":
      throw new AskError("timed_out", "it ran longer than the endpoint allows", { job });
    default:
      throw new AskError("unknown_status", `its status is ${JSON.stringify(told.status)}`, { job });
  }
}

/** Our service puts its typed error into the string; what RunPod itself writes there is only text. */
function failure(error: unknown, job: string): AskError {
  try {
    const told = JSON.parse(String(error)) as Told;
    const { error: message, error_type: errorType, retryable } = told;
    if (typeof message === "string" && typeof errorType === "string") {
      return new AskError("failed", `${errorType}: ${message}`, { job, errorType, retryable: retryable === true });
    }
  } catch {
    // only text
  }
  return new AskError("failed", String(error || "without a reason"), { job });
}

function readJob({ told }: Answer): Told {
  if (typeof told.id !== "string") throw new AskError("unknown_status", "the answer is not a job");
  return told;
}

/** What was answered, to its last byte; rejected where the connection breaks before that. */
async function send(url: string, init: RequestInit): Promise<Answer> {
  const response = await fetch(url, init);
  const text = await response.text();
  const { ok, status } = response;
  return { ok, status, retryAfter: response.headers.get("Retry-After") ?? "", told: read(text) };
}

/** An empty object where it is not one. */
function read(text: string): Told {
  try {
    const told: unknown = JSON.parse(text);
    return typeof told === "object" && told !== null ? (told as Told) : {};
  } catch {
    return {};
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
