// One measurement of go-nsq. The harness gives the job as JSON in the only argument and reads the result from stdout.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"sync"
	"sync/atomic"

	"github.com/nsqio/go-nsq"
)

// As many as go-nsq is quickest with here.
const handlers = 8

// The fields are those of the harness's job.rs.
type job struct {
	Nsqd     string   `json:"nsqd"`
	Topics   []string `json:"topics"`
	Messages uint64   `json:"messages"`
	Body     int      `json:"body"`
	Work     struct {
		Publish *publishing `json:"publish"`
		Consume *consuming  `json:"consume"`
	} `json:"work"`
}

type publishing struct {
	Batch    int    `json:"batch"`
	InFlight uint64 `json:"in_flight"`
}

type consuming struct {
	MaxInFlight int `json:"max_in_flight"`
}

func main() {
	var wanted job
	check(json.Unmarshal([]byte(os.Args[1]), &wanted))
	var result span
	switch {
	case wanted.Work.Publish != nil:
		result = publish(wanted, *wanted.Work.Publish)
	case wanted.Work.Consume != nil:
		result = consume(wanted, *wanted.Work.Consume)
	default:
		log.Fatal("no such work: ", os.Args[1])
	}
	check(json.NewEncoder(os.Stdout).Encode(result))
}

// Callers that share the messages, each awaiting one answer after the other.
func publish(wanted job, work publishing) span {
	producer, err := nsq.NewProducer(wanted.Nsqd, nsq.NewConfig())
	check(err)
	producer.SetLoggerLevel(nsq.LogLevelError)
	batch := make([][]byte, work.Batch)
	for index := range batch {
		batch[index] = make([]byte, wanted.Body)
	}
	call := func(topic string) error {
		if work.Batch == 1 {
			return producer.Publish(topic, batch[0])
		}
		return producer.MultiPublish(topic, batch)
	}
	for _, topic := range wanted.Topics {
		// The first creates the topic.
		check(call(topic))
	}
	calls := wanted.Messages / uint64(work.Batch) / work.InFlight
	var callers sync.WaitGroup
	started := start()
	for caller := uint64(0); caller < work.InFlight; caller++ {
		callers.Add(1)
		topic := wanted.Topics[caller%uint64(len(wanted.Topics))]
		go func() {
			defer callers.Done()
			for number := uint64(0); number < calls; number++ {
				check(call(topic))
			}
		}()
	}
	callers.Wait()
	result := started.stop(calls * work.InFlight * uint64(work.Batch))
	producer.Stop()
	return result
}

// Handles messages with handlers that only count them. The clock runs from the first message on.
func consume(wanted job, work consuming) span {
	config := nsq.NewConfig()
	config.MaxInFlight = work.MaxInFlight
	consumer, err := nsq.NewConsumer(wanted.Topics[0], "bench", config)
	check(err)
	consumer.SetLoggerLevel(nsq.LogLevelError)
	var handled uint64
	var started clock
	result := make(chan span, 1)
	consumer.AddConcurrentHandlers(nsq.HandlerFunc(func(*nsq.Message) error {
		switch atomic.AddUint64(&handled, 1) {
		case 1:
			started = start()
		case wanted.Messages:
			result <- started.stop(wanted.Messages)
		}
		return nil
	}), handlers)
	check(consumer.ConnectToNSQD(wanted.Nsqd))
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
