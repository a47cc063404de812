// The peer that such gateways are commonly built as: helmet, a JSON body, a JWT, a rate limit in memory, a proxied
// call. `AS=string` verifies with the secret's text, as most code does; `AS=KeyObject` with a key that is made once.
const crypto = require('crypto')
const http = require('http')
const express = require('express')
const helmet = require('helmet')
const jwt = require('jsonwebtoken')
const { rateLimit } = require('express-rate-limit')

const [port, upstream] = process.argv.slice(2).map(Number)
const text = process.env.SECRET
const secret = process.env.AS === 'KeyObject' ? crypto.createSecretKey(Buffer.from(text)) : text
const agent = new http.Agent({ keepAlive: true, maxSockets: 256 })
const app = express()

app.use(helmet())
app.use(express.json({ limit: '20mb' }))
app.use((request, response, next) => {
  request.id = crypto.randomUUID()
  response.set('x-request-id', request.id)
  next()
})
app.use((request, response, next) => {
  const [scheme, token] = (request.get('authorization') || '').split(' ')
  if (scheme !== 'Bearer') return response.status(401).json({ error: 'unauthorized' })
  jwt.verify(token, secret, { algorithms: ['HS256'] }, (error, claims) => {
    if (error) return response.status(401).json({ error: 'unauthorized' })
    request.caller = claims
    next()
  })
})
app.use(rateLimit({ windowMs: 60000, limit: 1e9, keyGenerator: (request) => request.caller.org, standardHeaders: true }))
app.post('/v1/chat/completions', (request, response) => {
  if (!Array.isArray(request.body.messages)) return response.status(400).json({ error: 'messages' })
  const body = JSON.stringify(request.body)
  const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }
  const call = http.request(
    { host: '127.0.0.1', port: upstream, path: '/v1/chat/completions', method: 'POST', agent, headers },
    (answer) => {
      response.status(answer.statusCode).set('content-type', answer.headers['content-type'])
      if (answer.headers['content-length']) response.set('content-length', answer.headers['content-length'])
      answer.pipe(response)
    }
  )
  call.on('error', () => response.destroy())
  call.end(body)
})
app.listen(port, '127.0.0.1', 1024)
