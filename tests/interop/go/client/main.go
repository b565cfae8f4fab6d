// Command client runs go-nsq through everything that an application does with it, against the brokers it is told of.
//
// It prints `ok NAME` or `FAIL NAME why` for each scenario, and exits with 1 if one failed. tests/interop/clients.rs
// says what each scenario leaves behind in the broker; the programs of the other languages do the same.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/nsqio/go-nsq"
)

const (
	// How long a scenario may take before it has failed. nsqd looks for delays that are over only every five seconds on
	// a channel it has not noticed yet.
	patience = 25 * time.Second
	// How long to look at something that must not happen.
	quiet = 300 * time.Millisecond
)

var (
	nsqdTCP     = flag.String("nsqd-tcp", "", "host:port of nsqd")
	lookupdHTTP = flag.String("lookupd-http", "", "host:port of nsqlookupd, which consumers ask for nsqd")
	tlsCA       = flag.String("tls-ca", "", "PEM file with the authority that signed nsqd's certificate: use TLS")
	snappy      = flag.Bool("snappy", false, "compress with snappy")
	deflate     = flag.Bool("deflate", false, "compress with deflate")
	auth        = flag.String("auth", "", "secret for AUTH")
	topicPrefix = flag.String("topic", "", "what the topics' names begin with")
	channel     = flag.String("channel", "", "channel")
	scenario    = flag.String("scenario", "all", "which scenario to run")
)

var logger = log.New(os.Stderr, "", log.LstdFlags|log.Lmicroseconds)

var scenarios = map[string]func(*run) error{
	"publish":       publish,
	"multi-publish": multiPublish,
	"deferred":      deferred,
	"consume":       consume,
	"requeue":       requeue,
	"touch":         touch,
	"backoff":       backoff,
	"stop":          stop,
}

func main() {
	flag.Parse()
	if flag.NArg() > 0 || *nsqdTCP == "" || *topicPrefix == "" || *channel == "" {
		flag.Usage()
		os.Exit(2)
	}
	chosen := []string{*scenario}
	if *scenario == "all" {
		chosen = chosen[:0]
		for name := range scenarios {
			chosen = append(chosen, name)
		}
		sort.Strings(chosen)
	} else if scenarios[*scenario] == nil {
		fmt.Fprintf(os.Stderr, "no such scenario: %s\n", *scenario)
		os.Exit(2)
	}

	producer, err := nsq.NewProducer(*nsqdTCP, config())
	if err != nil {
		fmt.Printf("FAIL producer %v\n", err)
		os.Exit(1)
	}
	producer.SetLogger(logger, nsq.LogLevelWarning)

	type outcome struct {
		name string
		err  error
	}
	outcomes := make(chan outcome, len(chosen))
	for _, name := range chosen {
		go func(name string) {
			r := &run{topic: *topicPrefix + "." + name, producer: producer, deadline: time.After(patience)}
			outcomes <- outcome{name, scenarios[name](r)}
		}(name)
	}
	failed := false
	overdue := time.After(patience + 5*time.Second)
	for range chosen {
		select {
		case outcome := <-outcomes:
			if outcome.err != nil {
				failed = true
				fmt.Printf("FAIL %s %v\n", outcome.name, outcome.err)
			} else {
				fmt.Printf("ok %s\n", outcome.name)
			}
		case <-overdue:
			fmt.Println("FAIL all a scenario hangs")
			os.Exit(1)
		}
	}
	producer.Stop()
	if failed {
		os.Exit(1)
	}
}

func config() *nsq.Config {
	config := nsq.NewConfig()
	set := func(option string, value interface{}) {
		if err := config.Set(option, value); err != nil {
			fmt.Printf("FAIL config %v\n", err)
			os.Exit(1)
		}
	}
	if *tlsCA != "" {
		set("tls_v1", true)
		set("tls_root_ca_file", *tlsCA)
	}
	set("snappy", *snappy)
	set("deflate", *deflate)
	set("auth_secret", *auth)
	set("lookupd_poll_interval", "250ms")
	return config
}

// run is one scenario.
type run struct {
	topic    string
	producer *nsq.Producer
	deadline <-chan time.Time
	consumer *nsq.Consumer
	messages chan *nsq.Message
}

// consume starts a consumer whose messages come through r.messages, unanswered.
func (r *run) consume(maxInFlight int, change func(*nsq.Config)) error {
	config := config()
	config.MaxInFlight = maxInFlight
	if change != nil {
		change(config)
	}
	consumer, err := nsq.NewConsumer(r.topic, *channel, config)
	if err != nil {
		return err
	}
	consumer.SetLogger(logger, nsq.LogLevelWarning)
	r.consumer = consumer
	r.messages = make(chan *nsq.Message, 1000)
	consumer.AddHandler(nsq.HandlerFunc(func(message *nsq.Message) error {
		message.DisableAutoResponse()
		r.messages <- message
		return nil
	}))
	if *lookupdHTTP != "" {
		return consumer.ConnectToNSQLookupd(*lookupdHTTP)
	}
	return consumer.ConnectToNSQD(*nsqdTCP)
}

func (r *run) next() (*nsq.Message, error) {
	select {
	case message := <-r.messages:
		return message, nil
	case <-r.deadline:
		return nil, errors.New("no message came")
	}
}

// nothing looks whether a message comes within a while.
func (r *run) nothing(while time.Duration) error {
	select {
	case message := <-r.messages:
		return fmt.Errorf("unexpected message: attempts %d, %q", message.Attempts, message.Body)
	case <-time.After(while):
		return nil
	}
}

// finished stops the consumer, which first lets all answers out.
func (r *run) finished() error {
	r.consumer.Stop()
	select {
	case <-r.consumer.StopChan:
		return nil
	case <-r.deadline:
		return errors.New("the consumer does not stop")
	}
}

// publish: bodies of every kind arrive as they were sent.
func publish(r *run) error {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	bodies := [][]byte{[]byte("x"), every, noise(100_000)}
	for _, body := range bodies {
		if err := r.producer.Publish(r.topic, body); err != nil {
			return err
		}
	}
	if err := r.consume(1, nil); err != nil {
		return err
	}
	for _, body := range bodies {
		message, err := r.next()
		if err != nil {
			return err
		}
		if !bytes.Equal(message.Body, body) || message.Attempts != 1 {
			return fmt.Errorf("sent %d bytes, got %d others", len(body), len(message.Body))
		}
		message.Finish()
	}
	return r.finished()
}

// noise is what no compression makes smaller.
func noise(size int) []byte {
	bytes, state := make([]byte, size), uint32(1)
	for i := range bytes {
		state = state*1664525 + 1013904223
		bytes[i] = byte(state >> 24)
	}
	return bytes
}

// multi-publish: all messages of one command arrive, each once.
func multiPublish(r *run) error {
	if err := r.producer.MultiPublish(r.topic, numbered(0, 100)); err != nil {
		return err
	}
	if err := r.consume(10, nil); err != nil {
		return err
	}
	if err := r.finishEach(100); err != nil {
		return err
	}
	return r.finished()
}

func numbered(from, to int) [][]byte {
	var bodies [][]byte
	for i := from; i < to; i++ {
		bodies = append(bodies, []byte(fmt.Sprintf("message %d", i)))
	}
	return bodies
}

// finishEach takes the messages of numbered(0, count): each once, each at its first attempt.
func (r *run) finishEach(count int) error {
	bodies, ids := map[string]bool{}, map[nsq.MessageID]bool{}
	for i := 0; i < count; i++ {
		message, err := r.next()
		if err != nil {
			return fmt.Errorf("%v after %d of %d", err, i, count)
		}
		if message.Attempts != 1 {
			return fmt.Errorf("attempts %d", message.Attempts)
		}
		bodies[string(message.Body)], ids[message.ID] = true, true
		message.Finish()
	}
	for _, body := range numbered(0, count) {
		if !bodies[string(body)] {
			return fmt.Errorf("%q is missing", body)
		}
	}
	if len(ids) != count {
		return fmt.Errorf("%d messages have %d ids", count, len(ids))
	}
	return nil
}

// deferred: a message does not come before its delay is over, and holds up no other.
func deferred(r *run) error {
	const delay = 500 * time.Millisecond
	begin := time.Now()
	if err := r.producer.DeferredPublish(r.topic, delay, []byte("later")); err != nil {
		return err
	}
	if err := r.producer.Publish(r.topic, []byte("now")); err != nil {
		return err
	}
	if err := r.consume(1, nil); err != nil {
		return err
	}
	for _, expected := range []string{"now", "later"} {
		message, err := r.next()
		if err != nil {
			return err
		}
		if string(message.Body) != expected {
			return fmt.Errorf("%q came instead of %q", message.Body, expected)
		}
		message.Finish()
	}
	if after := time.Since(begin); after < delay {
		return fmt.Errorf("delayed by %v, came after %v", delay, after)
	}
	return r.finished()
}

// consume: many messages, published one by one without waiting, arrive once each.
func consume(r *run) error {
	answers := make(chan *nsq.ProducerTransaction, 500)
	if err := r.producer.Publish(r.topic, numbered(0, 1)[0]); err != nil {
		return err
	}
	if err := r.consume(50, nil); err != nil {
		return err
	}
	for _, body := range numbered(1, 500) {
		if err := r.producer.PublishAsync(r.topic, body, answers); err != nil {
			return err
		}
	}
	for i := 1; i < 500; i++ {
		if answer := <-answers; answer.Error != nil {
			return answer.Error
		}
	}
	if err := r.finishEach(500); err != nil {
		return err
	}
	return r.finished()
}

// requeue: a requeued message comes again, as the same message with one more attempt, at once or after its delay.
func requeue(r *run) error {
	if err := r.producer.Publish(r.topic, []byte("again")); err != nil {
		return err
	}
	if err := r.consume(1, nil); err != nil {
		return err
	}
	first, err := r.next()
	if err != nil {
		return err
	}
	if first.Attempts != 1 {
		return fmt.Errorf("attempts %d at first", first.Attempts)
	}
	first.RequeueWithoutBackoff(0)
	second, err := r.next()
	if err != nil {
		return err
	}
	const delay = 200 * time.Millisecond
	begin := time.Now()
	second.RequeueWithoutBackoff(delay)
	third, err := r.next()
	if err != nil {
		return err
	}
	if after := time.Since(begin); after < delay {
		return fmt.Errorf("requeued with %v, came after %v", delay, after)
	}
	for i, message := range []*nsq.Message{second, third} {
		same := message.ID == first.ID && message.Timestamp == first.Timestamp && bytes.Equal(message.Body, first.Body)
		if !same || int(message.Attempts) != i+2 {
			return fmt.Errorf("%v became %v", first, message)
		}
	}
	third.Finish()
	return r.finished()
}

// touch: a message that is touched stays with its consumer for longer than its timeout.
func touch(r *run) error {
	if err := r.producer.Publish(r.topic, []byte("slow")); err != nil {
		return err
	}
	err := r.consume(2, func(config *nsq.Config) { config.MsgTimeout = time.Second })
	if err != nil {
		return err
	}
	message, err := r.next()
	if err != nil {
		return err
	}
	for i := 0; i < 8; i++ {
		if err := r.nothing(quiet); err != nil {
			return err
		}
		message.Touch()
	}
	message.Finish()
	if err := r.nothing(quiet); err != nil {
		return err
	}
	return r.finished()
}

// backoff: a failure stops delivery for a while, then it goes on.
func backoff(r *run) error {
	if err := r.producer.Publish(r.topic, []byte("failing")); err != nil {
		return err
	}
	// The first backoff is twice the unit.
	err := r.consume(4, func(config *nsq.Config) { config.BackoffMultiplier = 200 * time.Millisecond })
	if err != nil {
		return err
	}
	failing, err := r.next()
	if err != nil {
		return err
	}
	begin := time.Now()
	failing.Requeue(0)
	again, err := r.next()
	if err != nil {
		return err
	}
	if after := time.Since(begin); after < 300*time.Millisecond {
		return fmt.Errorf("no backoff: the message came again after %v", after)
	}
	if again.ID != failing.ID || again.Attempts != 2 {
		return fmt.Errorf("%v became %v", failing, again)
	}
	again.Finish()
	if err := r.producer.MultiPublish(r.topic, numbered(0, 10)); err != nil {
		return err
	}
	if err := r.finishEach(10); err != nil {
		return err
	}
	return r.finished()
}

// stop: the messages in flight are answered, nothing further comes, and the connection is closed.
func stop(r *run) error {
	if err := r.producer.MultiPublish(r.topic, numbered(0, 5)); err != nil {
		return err
	}
	if err := r.consume(5, nil); err != nil {
		return err
	}
	var held []*nsq.Message
	for len(held) < 5 {
		message, err := r.next()
		if err != nil {
			return err
		}
		held = append(held, message)
	}
	r.consumer.Stop()
	if err := r.producer.Publish(r.topic, []byte("left")); err != nil {
		return err
	}
	if err := r.nothing(quiet); err != nil {
		return err
	}
	select {
	case <-r.consumer.StopChan:
		return errors.New("stopped with messages in flight")
	default:
	}
	for _, message := range held {
		message.Finish()
	}
	if err := r.finished(); err != nil {
		return err
	}
	if connections := r.consumer.Stats().Connections; connections != 0 {
		return fmt.Errorf("%d connections are left", connections)
	}
	return nil
}

func init() {
	flag.Usage = func() {
		var names []string
		for name := range scenarios {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "usage: client FLAGS; scenarios: all, %s\n", strings.Join(names, ", "))
		flag.PrintDefaults()
	}
}
