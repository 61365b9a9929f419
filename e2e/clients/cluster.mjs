// What the scripts know of the cluster under test. They are run by clients_test.go, one for each
// client, against a node whose engine holds no model: every answer has crossed the mesh.
import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

const env = (name) => process.env[name] ?? assert.fail(`${name} is not set`)

// url is the node that is asked.
export const url = env('NODE_URL')

// What the engine itself answers: to a chat of the one message Hello, to the bare prompt Hello, each
// at temperature 0 and cut after 24 tokens; the embeddings of "one" and "two".
export const chatText = env('CHAT_TEXT')
export const promptText = env('PROMPT_TEXT')
export const embeddings = JSON.parse(env('EMBEDDINGS'))

export const hello = [{ role: 'user', content: 'Hello' }]
export const tokens = 24
// endless is more tokens than an engine makes in any test's time.
export const endless = 100_000

// The node that has the model noise, and its process: the parent of its engine.
const holder = { url: env('HOLDER_URL'), pid: env('HOLDER_PID') }
const patience = Number(env('PATIENCE_MS'))

// check is a test with a limit, so that an answer that never ends is a failure as well.
export const check = (name, run) => test(name, { timeout: 120_000 }, run)

// equalPieces checks the pieces of a streamed answer against the same answer in one piece.
export function equalPieces(pieces, whole) {
  assert.ok(pieces.filter((piece) => piece !== '').length > 1, `a stream of ${pieces.length} pieces`)
  assert.equal(pieces.join(''), whole)
}

// equalEmbeddings compares numbers that were written as float32 with as many digits as they need.
export function equalEmbeddings(got, want) {
  assert.equal(got.length, want.length)
  got.forEach((vector, i) => {
    assert.equal(vector.length, want[i].length)
    vector.forEach((x, j) => assert.ok(Math.abs(x - want[i][j]) < 1e-6, `[${i}][${j}] is ${x}, not ${want[i][j]}`))
  })
}

// generates waits until the engine is at work: what aborts has something to stop.
export const generates = () => eventually('the engine is at work', async () => (await busy()) === 1 && (await works()), 60_000)

// rests waits until the engine has stopped: the node counts no request there, and its processes
// use no processor time.
export const rests = () => eventually('the engine has stopped', async () => (await busy()) === 0 && !(await works()), patience)

async function busy() {
  const text = await (await fetch(`${holder.url}/metrics`)).text()
  return Number(text.match(/^ollamamax_engine_busy (\d+)$/m)[1])
}

async function works() {
  const before = ticks(holder.pid)
  await sleep(500)
  return ticks(holder.pid) - before > 3
}

// ticks is the processor time, in hundredths of a second, of all processes below pid.
function ticks(pid) {
  let sum = 0
  for (const child of children(pid)) {
    const stat = ifThere(() => readFileSync(`/proc/${child}/stat`, 'utf8'))
    if (!stat) continue
    const fields = stat.replace(/.*\) /s, '').split(' ')
    sum += Number(fields[11]) + Number(fields[12]) + ticks(child)
  }
  return sum
}

const children = (pid) =>
  (ifThere(() => readdirSync(`/proc/${pid}/task`)) ?? []).flatMap((task) =>
    (ifThere(() => readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8')) ?? '').split(' ').filter(Boolean))

// ifThere is what read returns, or undefined when the process has ended meanwhile.
function ifThere(read) {
  try {
    return read()
  } catch (err) {
    if (err.code !== 'ENOENT' && err.code !== 'ESRCH') throw err
  }
}

async function eventually(what, ok, limit) {
  for (const end = Date.now() + limit; !(await ok()); await sleep(20)) {
    if (Date.now() > end) assert.fail(`not within ${limit} ms: ${what}`)
  }
}
