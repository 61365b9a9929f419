package schedule

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// long is a prompt whose reading takes so long that a small share more decides.
func long() *cluster.Request { return prompt(40_000) }

// chosen counts whom the scheduler chooses for long prompts, one at a time, that are answered.
func chosen(s *Scheduler, n int) map[cluster.NodeID]int {
	count := map[cluster.NodeID]int{}
	for range n {
		lease := s.Try(long(), nil)
		count[lease.Node.ID]++
		lease.Done(cluster.Outcome{Result: cluster.Answered})
	}
	return count
}

func TestAFailureIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("bad", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		s.Try(long(), []cluster.NodeID{"good"}).Done(cluster.Outcome{Result: cluster.Failed})
		if count := chosen(s, 50); count["bad"] > 0 {
			t.Fatalf("right after a failure: %v", count)
		}
		time.Sleep(15 * time.Second)
		if count := chosen(s, 100); count["bad"] < 20 {
			t.Errorf("15 s after its only failure: %v", count)
		}
	})
}

func TestWhoseTimeIsOverIsTriedHoweverIllItLooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("bad", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		for range opensAfter {
			s.Try(long(), []cluster.NodeID{"good"}).Done(cluster.Outcome{Result: cluster.Failed})
		}
		if count := chosen(s, 50); count["bad"] > 0 {
			t.Fatalf("while its breaker is open: %v", count)
		}
		time.Sleep(firstOut * 5 / 4)
		if count := chosen(s, 50); count["bad"] < 10 {
			t.Errorf("its time is over, it answers, and it serves %v", count)
		}
	})
}

func TestAWaitInsideAnEngineIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("slow", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		for range 5 { // others keep it busy, of whom nobody tells
			s.Try(long(), []cluster.NodeID{"good"}).Done(cluster.Outcome{Result: cluster.Answered, First: time.Minute, Total: time.Minute})
		}
		if count := chosen(s, 50); count["slow"] > 0 {
			t.Fatalf("right after requests that waited: %v", count)
		}
		time.Sleep(2 * time.Minute)
		if count := chosen(s, 100); count["slow"] < 20 {
			t.Errorf("two minutes later: %v", count)
		}
	})
}

func TestASpeedThatIsOldIsDoubted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("slow", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		// answer takes 10,000 tokens in at so many a second, at the node that is not left out.
		answer := func(speed int, not ...cluster.NodeID) cluster.NodeID {
			lease := s.Try(long(), not)
			reading := 10_000 * time.Second / time.Duration(speed)
			lease.Done(cluster.Outcome{Result: cluster.Answered, First: reading, Prefill: reading, Total: reading, PromptTokens: 10_000})
			return lease.Node.ID
		}
		serve := func(n int) (slow int) {
			for range n {
				if answer(10_000) == "slow" {
					slow++
				}
			}
			return slow
		}
		for range 5 {
			answer(1000, "good") // its machine does something else just now
			answer(10_000, "slow")
		}
		for range 60 {
			if serve(1) > 0 {
				t.Fatal("it is asked although it was ten times slower a minute ago")
			}
			time.Sleep(time.Second)
		}
		asked := 0
		for range 20 {
			time.Sleep(time.Minute)
			asked += serve(10)
		}
		if asked < 30 {
			t.Errorf("in twenty minutes it was asked %d times of 200, and was fast", asked)
		}
	})
}

func TestAFewHiccupsDoNotKeepANodeOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("a", "m"), "m", 0), 8), slots(loaded(ready("b", "m"), "m", 0), 8))
		answer := func(reading time.Duration, not ...cluster.NodeID) cluster.NodeID {
			lease := s.Try(prompt(2000), not)
			lease.Done(cluster.Outcome{Result: cluster.Answered, First: reading, Prefill: reading, Total: reading, PromptTokens: 500})
			return lease.Node.ID
		}
		for range 10 {
			answer(25*time.Millisecond, "b")
			answer(25*time.Millisecond, "a")
		}
		for range 4 {
			answer(50*time.Millisecond, "a") // its machine was busy for a moment
		}
		served := map[cluster.NodeID]int{}
		for range 1000 {
			served[answer(25*time.Millisecond)]++
			time.Sleep(10 * time.Millisecond)
		}
		if served["b"] < 200 {
			t.Errorf("in the ten seconds behind a hiccup: %v", served)
		}
	})
}

func TestASlowNodeIsTriedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("slow", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		asked := 0
		for range 3600 {
			time.Sleep(time.Second)
			lease := s.Try(long(), nil)
			reading := time.Second
			if lease.Node.ID == "slow" {
				reading = 10 * time.Second
				asked++
			}
			lease.Done(cluster.Outcome{Result: cluster.Answered, First: reading, Prefill: reading, Total: reading, PromptTokens: 10_000})
		}
		if asked < 2 || asked > 36 {
			t.Errorf("of an hour's requests, one a second, a node that is ten times slower got %d", asked)
		}
	})
}

func TestWhoFailsIsAvoidedAlsoWhereBreakersMustNotShutOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("bad", "m"), "m", 0), 100), slots(loaded(ready("worse", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		for i := range opensAfter + 1 { // two of three, of which only one may be shut out
			if i == opensAfter {
				time.Sleep(2 * firstOut) // they were out once, and fail again
			}
			s.Try(prompt(1), []cluster.NodeID{"good", "worse"}).Done(cluster.Outcome{Result: cluster.Failed})
			s.Try(prompt(1), []cluster.NodeID{"good", "bad"}).Done(cluster.Outcome{Result: cluster.Failed})
		}
		for range 100 { // which take so little time that all are nearly as good
			lease := s.Try(prompt(1), nil)
			if lease.Node.ID != "good" {
				t.Fatalf("%s was chosen", lease.Node.ID)
			}
			lease.Done(cluster.Outcome{Result: cluster.Answered})
		}
	})
}

func TestAWaitInsideAnEngineGoesWithTheRequestsThatMadeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("crowded", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		var crowd []*cluster.Lease
		for range 40 { // more than it takes, whatever it is said to
			crowd = append(crowd, s.Try(long(), []cluster.NodeID{"good"}))
		}
		for _, lease := range crowd {
			lease.Done(cluster.Outcome{Result: cluster.Answered, First: 20 * time.Second, Total: 20 * time.Second})
		}
		if count := chosen(s, 100); count["crowded"] < 20 {
			t.Errorf("it has nothing to do, and serves %v", count)
		}
	})
}

func TestWhoHasFailedForLongIsBackWithinSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("bad", "m"), "m", 0), 100), slots(loaded(ready("good", "m"), "m", 0), 100))
		try := func(result cluster.Result) (bad bool) {
			time.Sleep(100 * time.Millisecond)
			lease := s.Try(prompt(1), nil)
			if bad = lease.Node.ID == "bad"; !bad {
				result = cluster.Answered
			}
			lease.Done(cluster.Outcome{Result: result})
			return bad
		}
		asked := 0
		for range 3000 { // five minutes
			if try(cluster.Failed) {
				asked++
			}
		}
		if asked < 30 || asked > 90 {
			t.Errorf("in five minutes in which it failed it was asked %d times", asked)
		}
		began := time.Now()
		for !try(cluster.Answered) {
			if time.Since(began) > 10*time.Second {
				t.Fatal("ten seconds after its fault has ended it is not asked")
			}
		}
	})
}

func TestWhoIsOverloadedIsNotRelievedByOthersThatAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(t, Default(), slots(loaded(ready("full", "m"), "m", 0), 100), slots(loaded(ready("fuller", "m"), "m", 0), 100), slots(loaded(ready("next", "m"), "m", 0), 100))
		for range opensAfter + 1 {
			s.Try(prompt(1), []cluster.NodeID{"next", "fuller"}).Done(cluster.Outcome{Result: cluster.Overloaded})
			s.Try(prompt(1), []cluster.NodeID{"next", "full"}).Done(cluster.Outcome{Result: cluster.Overloaded})
		}
		count := map[cluster.NodeID]int{}
		for range 60 {
			count[s.Try(prompt(1), nil).Node.ID]++ // none is given back
		}
		if count["next"] > 45 {
			t.Errorf("all goes to the one that is not yet overloaded: %v", count)
		}
	})
}
