// The AI SDK as a judge: run with the gateway's URL, an API key, and one of a tier of one call a minute.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, embed, generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai';
import assert from 'node:assert/strict';
const [url, token, tight] = process.argv.slice(-3);
const gateway = createOpenAICompatible({name: 'gateway', baseURL: url + '/v1', apiKey: token, includeUsage: true});
const asked = {model: gateway('echo'), prompt: 'Hello there', maxRetries: 0};
const whole = await generateText(asked);
assert.equal(whole.text, 'Hello there');
assert.equal(whole.usage.outputTokens, 2);
const stream = streamText(asked);
let said = '';
for await (const text of stream.textStream) said += text;
assert.equal(said, 'Hello there');
assert.equal((await stream.usage).outputTokens, 2);
assert.ok((await embed({model: gateway.textEmbeddingModel('echo'), value: 'a'})).embedding.length > 0);
await assert.rejects(generateText({...asked, model: gateway('nope')}),
  e => APICallError.isInstance(e) && e.statusCode === 400 && e.message.includes('there is no model'));

// A tool that runs here, and the turn after it.
const cities = [];
const weather = tool({
  inputSchema: jsonSchema({type: 'object', properties: {city: {type: 'string'}}}),
  execute: async ({city}) => { cities.push(city); return 'rain'; },
});
const turns = {model: gateway('tools'), prompt: 'Weather in Bonn?', tools: {weather}, stopWhen: stepCountIs(2), maxRetries: 0};
assert.equal((await generateText(turns)).text, 'It is rain.');
let told = '';
for await (const text of streamText(turns).textStream) told += text;
assert.equal(told, 'It is rain.');
assert.deepEqual(cities, ['Bonn', 'Bonn']);

const narrow = createOpenAICompatible({name: 'gateway', baseURL: url + '/v1', apiKey: tight});
await generateText({...asked, model: narrow('echo')});
await assert.rejects(generateText({...asked, model: narrow('echo')}),
  e => APICallError.isInstance(e) && e.statusCode === 429 && e.isRetryable && Number(e.responseHeaders['retry-after']) >= 1);
