// The npm package ollama.
import assert from 'node:assert/strict'
import { Ollama } from 'ollama'
import { chatText, check, embeddings, endless, equalEmbeddings, equalPieces, generates, hello, promptText, rests, tokens, url } from './cluster.mjs'

const client = new Ollama({ host: url })
const options = { temperature: 0, num_predict: tokens }

check('chat', async () => {
  const answer = await client.chat({ model: 'noise', messages: hello, options })
  assert.equal(answer.message.content, chatText)
  assert.equal(answer.message.role, 'assistant')
  assert.equal(answer.done, true)
  assert.equal(answer.eval_count, tokens)
})

check('chat, streaming', async () => {
  const pieces = []
  let last
  for await (const part of await client.chat({ model: 'noise', messages: hello, options, stream: true })) {
    pieces.push(part.message.content)
    last = part
  }
  equalPieces(pieces, chatText)
  assert.equal(last.done_reason, 'length')
  assert.equal(last.eval_count, tokens)
})

check('generate', async () => {
  const answer = await client.generate({ model: 'noise', prompt: 'Hello', options })
  assert.equal(answer.response, promptText)
  assert.equal(answer.done_reason, 'length')
})

check('generate, streaming', async () => {
  const pieces = []
  for await (const part of await client.generate({ model: 'noise', prompt: 'Hello', options, stream: true })) pieces.push(part.response)
  equalPieces(pieces, promptText)
})

check('chat in a given format', async () => {
  const format = { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'] }
  const answer = await client.chat({ model: 'noise', messages: hello, format, options: { temperature: 0, num_predict: 200 } })
  assert.equal(typeof JSON.parse(answer.message.content).ok, 'boolean')
})

check('embed', async () => {
  equalEmbeddings((await client.embed({ model: 'embed', input: ['one', 'two'] })).embeddings, embeddings)
})

check('embeddings, the older route', async () => {
  const { embedding } = await client.embeddings({ model: 'embed', prompt: 'one' })
  const length = Math.hypot(...embedding) // it alone does not bring them to length 1
  equalEmbeddings([embedding.map((x) => x / length)], [embeddings[0]])
})

check('list, show, ps, version', async () => {
  assert.deepEqual((await client.list()).models.map((m) => m.name).sort(), ['embed:latest', 'noise:latest'])
  assert.equal((await client.show({ model: 'noise' })).details.family, 'llama')
  assert.ok((await client.ps()).models.some((m) => m.name === 'noise:latest'))
  assert.match((await client.version()).version, /^\d+\.\d+/)
})

check('copy, delete', async () => {
  const names = async () => (await client.list()).models.map((m) => m.name)
  assert.equal((await client.copy({ source: 'noise', destination: 'other' })).status, 'success')
  assert.ok((await names()).includes('other:latest'))
  assert.equal((await client.delete({ model: 'other' })).status, 'success')
  assert.ok(!(await names()).includes('other:latest'))
})

const long = () => client.generate({ model: 'noise', prompt: 'Hello', options: { temperature: 0, num_predict: endless }, stream: true })

check('abort of the client', async () => {
  const stream = await long()
  let pieces = 0
  await assert.rejects(async () => {
    for await (const part of stream) {
      assert.equal(part.done, false)
      if (++pieces !== 3) continue
      await generates()
      client.abort()
    }
  }, { name: 'AbortError' })
  await rests()
})

check('abort of one stream', async () => {
  const stream = await long()
  let pieces = 0
  await assert.rejects(async () => {
    for await (const _ of stream) {
      if (++pieces !== 3) continue
      await generates()
      stream.abort()
    }
  }, { name: 'AbortError' })
  await rests()
})

check('errors', async () => {
  const notFound = { name: 'ResponseError', status_code: 404, error: "model 'nope' not found" }
  await assert.rejects(client.chat({ model: 'nope', messages: hello }), notFound)
  await assert.rejects(client.chat({ model: 'nope', messages: hello, stream: true }), notFound)
  await assert.rejects(client.generate({ model: 'nope', prompt: 'Hello' }), notFound)
  const notThere = { name: 'ResponseError', status_code: 404, error: /nope.* not found/ } // the engine names it in full
  await assert.rejects(client.show({ model: 'nope' }), notThere)
  await assert.rejects(client.delete({ model: 'nope' }), notThere)

  const badRequest = { name: 'ResponseError', status_code: 400 }
  await assert.rejects(client.chat({ model: '', messages: hello }), badRequest)
  await assert.rejects(client.chat({ model: 'noise', messages: 'Hello' }), badRequest)
  await assert.rejects(client.embed({ model: 'embed', input: 7 }), badRequest)
})

check('errors of the engine', async () => {
  const tools = [{ type: 'function', function: { name: 'f', parameters: { type: 'object', properties: {} } } }]
  await assert.rejects(client.chat({ model: 'noise', messages: hello, tools }), { name: 'ResponseError', status_code: 400, error: /does not support tools/ })
})
