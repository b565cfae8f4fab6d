// Runs nsqjs through everything that an application does with it, against the brokers it is told of.
//
// It prints `ok NAME` or `FAIL NAME why` for each scenario, and exits with 1 if one failed. tests/interop/clients.rs says
// what each scenario leaves behind in the broker; the programs of the other languages do the same.
'use strict'

const fs = require('fs')
const {parseArgs} = require('util')
const {Reader, Writer} = require('nsqjs')

// How long a scenario may take before it has failed, in ms. nsqd looks for delays that are over only every five seconds
// on a channel it has not noticed yet.
const PATIENCE = 25000
// How long to look at something that must not happen.
const QUIET = 300

const {values: options} = parseArgs({
  options: {
    'nsqd-tcp': {type: 'string'},
    'lookupd-http': {type: 'string', default: ''},
    'tls-ca': {type: 'string', default: ''},
    snappy: {type: 'boolean', default: false},
    deflate: {type: 'boolean', default: false},
    auth: {type: 'string', default: ''},
    topic: {type: 'string'},
    channel: {type: 'string'},
    scenario: {type: 'string', default: 'all'},
  },
})

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

function expect(condition, why) {
  if (!condition) throw new Error(why)
}

function connectionOptions() {
  const connection = {snappy: options.snappy, deflate: options.deflate}
  if (options['tls-ca']) Object.assign(connection, {tls: true, ca: fs.readFileSync(options['tls-ca'])})
  if (options.auth) connection.authSecret = options.auth
  return connection
}

// One scenario.
class Run {
  constructor(writer, name) {
    this.writer = writer
    this.topic = `${options.topic}.${name}`
    this.reader = null
    this.arrived = []
    this.waiting = null
  }

  // Starts a consumer whose messages come through next(), unanswered.
  consume(maxInFlight, more = {}) {
    const addresses = options['lookupd-http']
      ? {lookupdHTTPAddresses: [options['lookupd-http']], lookupdPollInterval: 1}
      : {nsqdTCPAddresses: [options['nsqd-tcp']]}
    this.reader = new Reader(this.topic, options.channel, {
      maxInFlight,
      ...addresses,
      ...more,
      ...connectionOptions(),
    })
    this.reader.on(Reader.MESSAGE, (message) => {
      this.arrived.push(message)
      if (this.waiting) this.waiting()
    })
    this.reader.on(Reader.ERROR, (error) => console.error(`${this.topic}: ${error}`))
    this.reader.connect()
  }

  // The next message, or undefined if none comes within `patience` ms.
  async next(patience = PATIENCE) {
    if (this.arrived.length === 0) {
      let timer
      await new Promise((resolve) => {
        this.waiting = resolve
        timer = setTimeout(resolve, patience)
      })
      clearTimeout(timer)
      this.waiting = null
    }
    return this.arrived.shift()
  }

  async nothing(ms) {
    const message = await this.next(ms)
    if (message) throw new Error(`unexpected message: attempts ${message.attempts}, ${message.body}`)
  }

  publish(bodies) {
    return new Promise((resolve, reject) => {
      this.writer.publish(this.topic, bodies, (error) => (error ? reject(error) : resolve()))
    })
  }

  deferredPublish(delay, body) {
    return new Promise((resolve, reject) => {
      // nsqjs takes one message, but only within an array.
      this.writer.deferPublish(this.topic, [body], delay, (error) => (error ? reject(error) : resolve()))
    })
  }

  // Closes the reader, and waits until it has no connection.
  async finished() {
    await this.written()
    if (this.reader.connectionIds.length > 0) {
      const closed = new Promise((resolve) => this.reader.once(Reader.NSQD_CLOSED, resolve))
      this.reader.close()
      await closed
    }
  }

  // Returns when all that was answered has been given to the socket: close() does not wait for what a compressor still
  // holds, and nsqjs tells nobody.
  async written() {
    await sleep(0)
    const streams = this.reader.readerRdy.connections.map(({conn}) => conn.outWriter)
    await Promise.all(streams.map((stream) => new Promise((resolve) => stream.write('NOP\n', resolve))))
    await sleep(0)
  }

  // Takes the messages of numbered(0, count): each once, each at its first attempt.
  async finishEach(count) {
    const bodies = new Set()
    const ids = new Set()
    for (let i = 0; i < count; i++) {
      const message = await this.next()
      expect(message, `no message came after ${i} of ${count}`)
      expect(message.attempts === 1, `attempts ${message.attempts}`)
      bodies.add(message.body.toString())
      ids.add(message.id)
      message.finish()
    }
    const missing = numbered(0, count).filter((body) => !bodies.has(body))
    expect(missing.length === 0 && ids.size === count, `missing: ${missing}; ${ids.size} ids`)
  }
}

function numbered(from, to) {
  const bodies = []
  for (let i = from; i < to; i++) bodies.push(`message ${i}`)
  return bodies
}

// What no compression makes smaller.
function noise(size) {
  const bytes = Buffer.alloc(size)
  let state = 1
  for (let i = 0; i < size; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    bytes[i] = state >>> 24
  }
  return bytes
}

const scenarios = {
  // Bodies of every kind arrive as they were sent.
  async publish(run) {
    const every = Buffer.from(Array.from({length: 256}, (_, i) => i))
    const bodies = [Buffer.from('x'), every, noise(100000)]
    for (const body of bodies) await run.publish(body)
    run.consume(1)
    for (const body of bodies) {
      const message = await run.next()
      expect(message, 'no message came')
      const same = message.body.equals(body) && message.attempts === 1
      expect(same, `sent ${body.length} bytes, got ${message.body.length} others`)
      message.finish()
    }
    await run.finished()
  },

  // All messages of one command arrive, each once.
  async 'multi-publish'(run) {
    await run.publish(numbered(0, 100))
    run.consume(10)
    await run.finishEach(100)
    await run.finished()
  },

  // A message does not come before its delay is over, and holds up no other.
  async deferred(run) {
    const delay = 500
    const begin = performance.now()
    await run.deferredPublish(delay, 'later')
    await run.publish('now')
    run.consume(1)
    for (const expected of ['now', 'later']) {
      const message = await run.next()
      expect(message, 'no message came')
      expect(message.body.toString() === expected, `${message.body} came instead of ${expected}`)
      message.finish()
    }
    const after = performance.now() - begin
    expect(after >= delay, `delayed by ${delay} ms, came after ${after} ms`)
    await run.finished()
  },

  // Many messages, published one by one without waiting, arrive once each.
  async consume(run) {
    await run.publish('message 0')
    run.consume(50)
    await Promise.all(numbered(1, 500).map((body) => run.publish(body)))
    await run.finishEach(500)
    await run.finished()
  },

  // A requeued message comes again, as the same message with one more attempt, at once or after its delay.
  async requeue(run) {
    await run.publish('again')
    run.consume(1)
    const first = await run.next()
    expect(first && first.attempts === 1, 'no message at its first attempt')
    first.requeue(0, false)
    const second = await run.next()
    expect(second, 'the message did not come again')
    const begin = performance.now()
    second.requeue(200, false)
    const third = await run.next()
    const after = performance.now() - begin
    expect(third, 'the message did not come again')
    expect(after >= 200, `requeued with 200 ms, came after ${after} ms`)
    const what = ({id, timestamp, body}) => `${id} ${timestamp} ${body}`
    expect(what(second) === what(first) && second.attempts === 2, `${what(first)} became ${what(second)}`)
    expect(what(third) === what(first) && third.attempts === 3, `${what(first)} became ${what(third)}`)
    third.finish()
    await run.finished()
  },

  // A message that is touched stays with its consumer for longer than its timeout.
  async touch(run) {
    await run.publish('slow')
    run.consume(2, {messageTimeout: 1000})
    const message = await run.next()
    expect(message, 'no message came')
    for (let i = 0; i < 8; i++) {
      await run.nothing(QUIET)
      message.touch()
    }
    message.finish()
    await run.nothing(QUIET)
    await run.finished()
  },

  // A failure stops delivery for a while, then it goes on.
  async backoff(run) {
    await run.publish('failing')
    // The first backoff is 0.028 of the longest.
    run.consume(4, {maxBackoffDuration: 16})
    const failing = await run.next()
    expect(failing, 'no message came')
    const begin = performance.now()
    failing.requeue(0)
    const again = await run.next()
    const after = performance.now() - begin
    expect(again, 'the message did not come again')
    expect(after >= 300, `no backoff: the message came again after ${after} ms`)
    expect(again.id === failing.id && again.attempts === 2, `${failing.id} became ${again.id} ${again.attempts}`)
    again.finish()
    await run.publish(numbered(0, 10))
    await run.finishEach(10)
    await run.finished()
  },

  // The messages in flight are answered, nothing further comes, and the connection is closed. nsqjs closes at once: to
  // stop cleanly an application first pauses it.
  async stop(run) {
    await run.publish(numbered(0, 5))
    run.consume(5)
    const held = []
    while (held.length < 5) {
      const message = await run.next()
      expect(message, `no message came after ${held.length} of 5`)
      held.push(message)
    }
    run.reader.pause()
    await run.publish('left')
    await run.nothing(QUIET)
    held.forEach((message) => message.finish())
    await run.finished()
  },
}

async function outcome(writer, name) {
  try {
    await scenarios[name](new Run(writer, name))
  } catch (error) {
    console.log(`FAIL ${name} ${error.message}`)
    return false
  }
  console.log(`ok ${name}`)
  return true
}

async function main() {
  setTimeout(() => {
    console.log('FAIL all a scenario hangs')
    process.exit(1)
  }, PATIENCE + 5000).unref()
  const [host, port] = options['nsqd-tcp'].split(':')
  const writer = new Writer(host, port, connectionOptions())
  await new Promise((resolve, reject) => {
    writer.on(Writer.READY, resolve)
    writer.on(Writer.ERROR, (error) => {
      console.error(`writer: ${error}`)
      reject(error)
    })
    writer.connect()
  })
  const names = options.scenario === 'all' ? Object.keys(scenarios) : [options.scenario]
  const outcomes = await Promise.all(names.map((name) => outcome(writer, name)))
  writer.close()
  return outcomes.every(Boolean)
}

main().then(
  (good) => process.exit(good ? 0 : 1),
  (error) => {
    console.log(`FAIL all ${error.message}`)
    process.exit(1)
  }
)
