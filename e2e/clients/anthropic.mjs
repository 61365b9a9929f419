// The npm package @anthropic-ai/sdk. Anthropic has no embeddings.
import assert from 'node:assert/strict'
import Anthropic from '@anthropic-ai/sdk'
import { chatText, check, endless, equalPieces, generates, hello, rests, tokens, url } from './cluster.mjs'

const client = new Anthropic({ baseURL: url, apiKey: 'none' })
const message = { model: 'noise', messages: hello, temperature: 0, max_tokens: tokens }
const long = { ...message, max_tokens: endless }

check('message', async () => {
  const { data, response } = await client.messages.create(message).withResponse()
  assert.deepEqual(data.content, [{ type: 'text', text: chatText }])
  assert.equal(data.role, 'assistant')
  assert.equal(data.stop_reason, 'max_tokens')
  assert.equal(data.usage.output_tokens, tokens)
  assert.equal(response.headers.get('x-ollamamax-node'), 'b')
})

check('message, streaming', async () => {
  const pieces = []
  const types = []
  for await (const event of await client.messages.create({ ...message, stream: true })) {
    types.push(event.type)
    if (event.type === 'content_block_delta') pieces.push(event.delta.text)
  }
  equalPieces(pieces, chatText)
  assert.equal(types[0], 'message_start')
  assert.equal(types.filter((type) => type === 'message_stop').length, 1)
  assert.equal(types.at(-1), 'message_stop')
})

check('message, the streaming helper', async () => {
  const stream = client.messages.stream(message)
  const pieces = []
  stream.on('text', (piece) => pieces.push(piece))
  const answer = await stream.finalMessage()
  equalPieces(pieces, chatText)
  assert.equal(answer.content[0].text, chatText)
  assert.equal(answer.usage.output_tokens, tokens)
})

check('models', async () => {
  const names = []
  for await (const model of client.models.list()) names.push(model.id)
  assert.deepEqual(names.sort(), ['embed:latest', 'noise:latest'])
  assert.equal((await client.models.retrieve('noise')).id, 'noise')
})

check('abort before the answer', async () => {
  const abort = new AbortController()
  const refused = assert.rejects(client.messages.create(long, { signal: abort.signal, timeout: 600_000 }), Anthropic.APIUserAbortError)
  await generates()
  abort.abort()
  await refused
  await rests()
})

check('abort in mid-stream', async () => {
  const stream = client.messages.stream(long)
  let pieces = 0
  stream.on('text', async () => {
    if (++pieces !== 3) return
    await generates()
    stream.abort()
  })
  await assert.rejects(stream.done(), Anthropic.APIUserAbortError)
  assert.ok(pieces >= 3)
  await rests()
})

check('a loop that is left in mid-stream', async () => {
  let deltas = 0
  for await (const event of await client.messages.create({ ...long, stream: true })) {
    if (event.type !== 'content_block_delta' || ++deltas !== 3) continue
    await generates()
    break
  }
  assert.equal(deltas, 3)
  await rests()
})

check('errors', async () => {
  const notFound = (error) => {
    assert.ok(error instanceof Anthropic.NotFoundError, String(error))
    assert.equal(error.status, 404)
    assert.equal(error.error.error.type, 'not_found_error')
    assert.match(error.message, /nope.*not found/)
    return true
  }
  await assert.rejects(client.messages.create({ ...message, model: 'nope' }), notFound)
  await assert.rejects(client.messages.create({ ...message, model: 'nope', stream: true }), notFound)
  await assert.rejects(client.messages.stream({ ...message, model: 'nope' }).finalMessage(), notFound)
  await assert.rejects(client.models.retrieve('nope'), Anthropic.NotFoundError)

  const badRequest = (error) => {
    assert.ok(error instanceof Anthropic.BadRequestError, String(error))
    assert.equal(error.status, 400)
    assert.equal(error.error.error.type, 'invalid_request_error')
    return true
  }
  await assert.rejects(client.messages.create({ ...message, max_tokens: 0 }), badRequest)
  await assert.rejects(client.messages.create({ ...message, messages: [] }), badRequest)
  await assert.rejects(client.messages.create({ ...message, messages: 'Hello' }), badRequest)
})

check('errors of the engine', async () => {
  const tools = [{ name: 'f', input_schema: { type: 'object', properties: {} } }]
  await assert.rejects(client.messages.create({ ...message, tools }), (error) => {
    assert.ok(error instanceof Anthropic.BadRequestError, String(error))
    assert.match(error.message, /does not support tools/)
    return true
  })
})
