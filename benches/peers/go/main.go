// One measurement of go-nsq. The harness gives the job as JSON in the only argument and reads the result from stdout.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nsqio/go-nsq"
)

// As many as go-nsq is quickest with here.
const handlers = 8

// The fields are those of the harness's job.rs.
type job struct {
	Nsqd        string   `json:"nsqd"`
	OtherNsqds  []string `json:"other_nsqds"`
	Topics      []string `json:"topics"`
	Messages    uint64   `json:"messages"`
	Bodies      string   `json:"bodies"`
	RootCA      string   `json:"root_ca"`
	Compression string   `json:"compression"`
	Work        struct {
		Publish *publishing `json:"publish"`
		Consume *consuming  `json:"consume"`
		Sleep   *sleeping   `json:"sleep"`
		Latency *latency    `json:"latency"`
		Idle    *idling     `json:"idle"`
	} `json:"work"`
}

type publishing struct {
	Batch    int    `json:"batch"`
	InFlight uint64 `json:"in_flight"`
}

type consuming struct {
	MaxInFlight int `json:"max_in_flight"`
}

type sleeping struct {
	MaxInFlight  int           `json:"max_in_flight"`
	Handlers     int           `json:"handlers"`
	OneIn        uint64        `json:"one_in"`
	Microseconds time.Duration `json:"microseconds"`
}

type latency struct {
	Rate                uint64 `json:"rate"`
	MaxInFlight         int    `json:"max_in_flight"`
	OutputBufferTimeout *int64 `json:"output_buffer_timeout"`
	Block               *int64 `json:"block"`
}

func main() {
	var wanted job
	check(json.Unmarshal([]byte(os.Args[1]), &wanted))
	var result span
	switch {
	case wanted.Work.Publish != nil:
		result = publish(wanted, *wanted.Work.Publish)
	case wanted.Work.Consume != nil:
		result = consume(wanted, wanted.Work.Consume.MaxInFlight, handlers, 1, 0)
	case wanted.Work.Sleep != nil:
		work := wanted.Work.Sleep
		result = consume(wanted, work.MaxInFlight, work.Handlers, work.OneIn, work.Microseconds*time.Microsecond)
	case wanted.Work.Latency != nil:
		result = measureLatency(wanted, *wanted.Work.Latency)
	case wanted.Work.Idle != nil:
		result = measureMemory(wanted, *wanted.Work.Idle)
	default:
		log.Fatal("no such work: ", os.Args[1])
	}
	check(json.NewEncoder(os.Stdout).Encode(result))
}

func config(wanted job) *nsq.Config {
	config := nsq.NewConfig()
	if wanted.RootCA != "" {
		check(config.Set("tls_v1", true))
		check(config.Set("tls_root_ca_file", wanted.RootCA))
	}
	config.Snappy = wanted.Compression == "snappy"
	config.Deflate = wanted.Compression == "deflate"
	return config
}

// Callers that share the messages, each awaiting one answer after the other.
func publish(wanted job, work publishing) span {
	producer, err := nsq.NewProducer(wanted.Nsqd, config(wanted))
	check(err)
	producer.SetLoggerLevel(nsq.LogLevelError)
	text, err := os.ReadFile(wanted.Bodies)
	check(err)
	bodies := bytes.Split(text, []byte("\n"))
	// The first of them once more behind the last, so that each batch is a slice of them.
	batches := append(bodies[:len(bodies):len(bodies)], bodies[:work.Batch]...)
	call := func(topic string, number uint64) error {
		first := number % uint64(len(bodies))
		if work.Batch == 1 {
			return producer.Publish(topic, bodies[first])
		}
		return producer.MultiPublish(topic, batches[first:first+uint64(work.Batch)])
	}
	for _, topic := range wanted.Topics {
		// The first creates the topic.
		check(call(topic, 0))
	}
	calls := wanted.Messages / uint64(work.Batch) / work.InFlight
	var callers sync.WaitGroup
	started := start()
	for caller := uint64(0); caller < work.InFlight; caller++ {
		callers.Add(1)
		topic, first := wanted.Topics[caller%uint64(len(wanted.Topics))], caller
		go func() {
			defer callers.Done()
			for number := uint64(0); number < calls; number++ {
				check(call(topic, first+number*uint64(work.Batch)))
			}
		}()
	}
	callers.Wait()
	result := started.stop(calls * work.InFlight * uint64(work.Batch))
	producer.Stop()
	return result
}

// Handles messages with handlers that sleep at one in so many, if there is a pause, and count them. The clock runs from the
// first message on.
func consume(wanted job, maxInFlight, handlers int, oneIn uint64, pause time.Duration) span {
	config := config(wanted)
	config.MaxInFlight = maxInFlight
	var begun, handled uint64
	var started clock
	result := make(chan span, 1)
	return run(wanted, config, handlers, result, func(*nsq.Message) error {
		if pause > 0 && atomic.AddUint64(&begun, 1)%oneIn == 0 {
			time.Sleep(pause)
		}
		switch atomic.AddUint64(&handled, 1) {
		case 1:
			started = start()
		case wanted.Messages:
			result <- started.stop(wanted.Messages)
		}
		return nil
	})
}

// Consumes until there is a result.
func run(wanted job, config *nsq.Config, handlers int, result <-chan span, handler nsq.HandlerFunc) span {
	consumer, err := nsq.NewConsumer(wanted.Topics[0], "bench", config)
	check(err)
	consumer.SetLoggerLevel(nsq.LogLevelError)
	consumer.AddConcurrentHandlers(handler, handlers)
	check(consumer.ConnectToNSQDs(append([]string{wanted.Nsqd}, wanted.OtherNsqds...)))
	measured := <-result
	consumer.Stop()
	<-consumer.StopChan
	return measured
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "go-nsq:", err)
		os.Exit(1)
	}
}
