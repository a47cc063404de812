// The SDK of OpenAI as a judge: run with the gateway's URL, an API key, and one of a tier of one call a minute.
import OpenAI from 'openai';
import assert from 'node:assert/strict';
const [url, token, tight] = process.argv.slice(-3);
const given = {baseURL: url + '/v1', apiKey: token, maxRetries: 0};
const client = new OpenAI(given);
const asked = {model: 'echo', messages: [{role: 'user', content: 'Hello there'}]};
const whole = await client.chat.completions.create(asked);
assert.equal(whole.choices[0].message.content, 'Hello there');
assert.equal(whole.usage.completion_tokens, 2);
let said = '', usage = null;
const stream = await client.chat.completions.create({...asked, stream: true, stream_options: {include_usage: true}});
for await (const chunk of stream) { said += chunk.choices[0]?.delta.content ?? ''; usage = chunk.usage ?? usage; }
assert.equal(said, 'Hello there');
assert.equal(usage.completion_tokens, 2);
const ids = [];
for await (const model of client.models.list()) ids.push(model.id);
assert.ok(ids.includes('echo'));
const vectors = await client.embeddings.create({model: 'echo', input: ['a', 'b']});
assert.equal(vectors.data.length, 2);
assert.ok(vectors.data[0].embedding.length > 0);
await assert.rejects(client.chat.completions.create({...asked, model: 'nope'}),
  e => e instanceof OpenAI.BadRequestError && e.param === 'model' && e.code === 'BAD_REQUEST');
await assert.rejects(new OpenAI({...given, apiKey: 'nonsense'}).chat.completions.create(asked),
  e => e instanceof OpenAI.AuthenticationError && e.status === 401);

// A tool call, whole and streamed, and the turn after it.
const tools = [{type: 'function', function: {name: 'weather', parameters: {type: 'object', properties: {city: {type: 'string'}}}}}];
const wanted = {model: 'tools', messages: [{role: 'user', content: 'Weather in Bonn?'}], tools};
const called = (await client.chat.completions.create(wanted)).choices[0];
assert.equal(called.finish_reason, 'tool_calls');
assert.equal(called.message.tool_calls[0].function.name, 'weather');
assert.deepEqual(JSON.parse(called.message.tool_calls[0].function.arguments), {city: 'Bonn'});
const final = await client.chat.completions.stream(wanted).finalChatCompletion();
assert.equal(final.choices[0].finish_reason, 'tool_calls');
assert.deepEqual(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments), {city: 'Bonn'});
const after = [...wanted.messages, called.message, {role: 'tool', tool_call_id: 'call_1', content: 'rain'}];
assert.equal((await client.chat.completions.create({...wanted, messages: after})).choices[0].message.content, 'It is rain.');

const limited = new OpenAI({...given, apiKey: tight});
await limited.chat.completions.create(asked);
await assert.rejects(limited.chat.completions.create(asked),
  e => e instanceof OpenAI.RateLimitError && e.code === 'RATE_LIMIT_EXCEEDED' && Number(e.headers.get('retry-after')) >= 1);
