// The npm package openai.
import assert from 'node:assert/strict'
import OpenAI from 'openai'
import { chatText, check, embeddings, endless, equalEmbeddings, equalPieces, generates, hello, promptText, rests, tokens, url } from './cluster.mjs'

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none' })
const chat = { model: 'noise', messages: hello, temperature: 0, max_tokens: tokens }
const completion = { model: 'noise', prompt: 'Hello', temperature: 0, max_tokens: tokens }
const response = { model: 'noise', input: 'Hello', temperature: 0, max_output_tokens: tokens }

check('chat completion', async () => {
  const { data, response } = await client.chat.completions.create(chat).withResponse()
  assert.equal(data.choices[0].message.content, chatText)
  assert.equal(data.choices[0].finish_reason, 'length')
  assert.equal(data.usage.completion_tokens, tokens)
  assert.equal(response.headers.get('x-ollamamax-node'), 'b')
})

check('chat completion, streaming', async () => {
  const pieces = []
  let usage
  for await (const chunk of await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } })) {
    for (const choice of chunk.choices) pieces.push(choice.delta.content ?? '')
    usage = chunk.usage ?? usage
  }
  equalPieces(pieces, chatText)
  assert.equal(usage.completion_tokens, tokens)
})

check('chat completion, the streaming helper', async () => {
  const stream = client.chat.completions.stream(chat)
  const pieces = []
  stream.on('content', (piece) => pieces.push(piece))
  const answer = await stream.finalChatCompletion()
  equalPieces(pieces, chatText)
  assert.equal(answer.choices[0].message.content, chatText)
})

check('chat completion in a given format', async () => {
  const schema = { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'], additionalProperties: false }
  const answer = await client.chat.completions.create({ ...chat, max_tokens: 200, response_format: { type: 'json_schema', json_schema: { name: 'answer', strict: true, schema } } })
  assert.equal(typeof JSON.parse(answer.choices[0].message.content).ok, 'boolean')
})

check('legacy completion', async () => {
  const answer = await client.completions.create(completion)
  assert.equal(answer.choices[0].text, promptText)
  assert.equal(answer.usage.completion_tokens, tokens)
})

check('legacy completion, streaming', async () => {
  const pieces = []
  for await (const chunk of await client.completions.create({ ...completion, stream: true })) pieces.push(chunk.choices[0].text)
  equalPieces(pieces, promptText)
})

check('response', async () => {
  const answer = await client.responses.create(response)
  assert.equal(answer.output_text, chatText)
  assert.equal(answer.usage.output_tokens, tokens)
})

check('response, streaming', async () => {
  const pieces = []
  const types = []
  for await (const event of await client.responses.create({ ...response, stream: true })) {
    types.push(event.type)
    if (event.type === 'response.output_text.delta') pieces.push(event.delta)
  }
  equalPieces(pieces, chatText)
  assert.equal(types[0], 'response.created')
  assert.equal(types.filter((type) => type === 'response.completed').length, 1)
  assert.equal(types.at(-1), 'response.completed')
})

check('embeddings', async () => {
  for (const encoding_format of [undefined, 'float', 'base64']) { // undefined: the client asks for base64 and decodes it
    const { data } = await client.embeddings.create({ model: 'embed', input: ['one', 'two'], encoding_format })
    const vectors = data.map(({ embedding }) => (typeof embedding === 'string' ? decoded(embedding) : embedding))
    equalEmbeddings(vectors, embeddings)
  }
})

function decoded(base64) {
  const bytes = Buffer.from(base64, 'base64')
  return Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i))
}

check('models', async () => {
  const names = []
  for await (const model of client.models.list()) names.push(model.id)
  assert.deepEqual(names.sort(), ['embed:latest', 'noise:latest'])
  assert.equal((await client.models.retrieve('noise')).id, 'noise')
})

check('abort before the answer', async () => {
  const abort = new AbortController()
  const answer = client.chat.completions.create({ ...chat, max_tokens: endless }, { signal: abort.signal })
  const refused = assert.rejects(answer, OpenAI.APIUserAbortError)
  await generates()
  abort.abort()
  await refused
  await rests()
})

check('abort in mid-stream', async () => {
  const stream = client.chat.completions.stream({ ...chat, max_tokens: endless })
  let pieces = 0
  stream.on('content', async () => {
    if (++pieces !== 3) return
    await generates()
    stream.abort()
  })
  await assert.rejects(stream.done(), OpenAI.APIUserAbortError)
  assert.ok(pieces >= 3)
  await rests()
})

check('abort of a streamed response', async () => {
  const stream = client.responses.stream({ ...response, max_output_tokens: endless })
  stream.once('response.output_text.delta', async () => {
    await generates()
    stream.abort()
  })
  await assert.rejects(stream.done(), OpenAI.APIUserAbortError)
  await rests()
})

check('a loop that is left in mid-stream', async () => {
  let pieces = 0
  for await (const _ of await client.completions.create({ ...completion, max_tokens: endless, stream: true })) {
    if (++pieces !== 3) continue
    await generates()
    break
  }
  assert.equal(pieces, 3)
  await rests()
})

check('errors', async () => {
  const notFound = (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError, String(error))
    assert.equal(error.status, 404)
    assert.equal(error.type, 'not_found_error')
    assert.match(error.message, /nope.*not found/)
    return true
  }
  await assert.rejects(client.chat.completions.create({ ...chat, model: 'nope' }), notFound)
  await assert.rejects(client.chat.completions.create({ ...chat, model: 'nope', stream: true }), notFound)
  await assert.rejects(client.completions.create({ ...completion, model: 'nope' }), notFound)
  await assert.rejects(client.responses.create({ ...response, model: 'nope' }), notFound)
  await assert.rejects(client.embeddings.create({ model: 'nope', input: 'one' }), notFound)
  await assert.rejects(client.models.retrieve('nope'), OpenAI.NotFoundError)

  const badRequest = (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError, String(error))
    assert.equal(error.status, 400)
    assert.equal(error.type, 'invalid_request_error')
    return true
  }
  await assert.rejects(client.chat.completions.create({ ...chat, messages: [] }), badRequest)
  await assert.rejects(client.chat.completions.create({ ...chat, messages: 'Hello' }), badRequest)
  await assert.rejects(client.embeddings.create({ model: 'embed', input: [] }), badRequest)
})

check('errors of the engine', async () => {
  const tools = [{ type: 'function', function: { name: 'f', parameters: { type: 'object', properties: {} } } }]
  await assert.rejects(client.chat.completions.create({ ...chat, tools }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError, String(error))
    assert.match(error.message, /does not support tools/)
    return true
  })
})
