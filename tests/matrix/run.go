package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// A Verdict is what became of a row over one family. The zero value is no verdict, which counts as a failure.
type Verdict string

// The verdicts.
const (
	OK      Verdict = "ok"
	Failed  Verdict = "FAILED"  // the gate let something through, or stopped what must work
	Broken  Verdict = "BROKEN"  // the lab did not work, or the control failed: nothing is known about the gate
	Skipped Verdict = "SKIPPED" // this machine or user lacks what the row needs
)

// A Result is one row over one family.
type Result struct {
	Row     Row
	Family  Family
	Verdict Verdict
	Reasons []string
	Notes   []string // figures
	Took    time.Duration
}

// rowDeadline bounds one row over one family, beside a storm.
const rowDeadline = 90 * time.Second

// runRow tries a row over one family in a lab of its own.
func runRow(ctx context.Context, programs Programs, r Row, f Family, m *Mutation) Result {
	began := time.Now()
	done := func(v Verdict, reasons ...string) Result { return Result{r, f, v, reasons, nil, time.Since(began)} }
	if r.Needs.missing() {
		return done(Skipped, "needs "+string(r.Needs))
	}
	l, err := newLab(programs, f, m)
	if err != nil {
		return done(Broken, err.Error())
	}
	finished := make(chan bool, 1)
	go func() {
		orderly := false
		defer func() {
			if fault := recover(); fault != nil {
				l.mu.Lock()
				l.brokenness = append(l.brokenness, fmt.Sprintf("panic: %v\n%s", fault, debug.Stack()))
				l.mu.Unlock()
			}
			finished <- orderly
		}()
		l.try(r)
		orderly = true
	}()
	orderly, inTime := false, true
	// A goroutine that is left behind soon ends without its lab.
	select {
	case orderly = <-finished:
	case <-ctx.Done():
	case <-time.After(rowDeadline + stormDuration):
		inTime = false
	}
	closed := make(chan struct{})
	go func() { l.close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(patience):
		return done(Broken, append(l.failures, "its lab does not end")...) // a process of the podVM that nobody reaps
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case ctx.Err() != nil: // what the row saw of its lab's end is no failure
		return done(Broken, "interrupted")
	case len(l.failures) > 0:
		return done(Failed, l.failures...)
	case len(l.brokenness) > 0:
		return done(Broken, l.brokenness...)
	case !inTime:
		return done(Broken, fmt.Sprintf("it took more than %v", rowDeadline))
	case !orderly:
		return done(Broken, "it ended before its end")
	case l.controls == 0:
		return done(Broken, "it made no control")
	}
	result := done(OK)
	result.Notes = l.notes
	return result
}

func (l *Lab) try(r Row) {
	if r.Enter != nil {
		r.Enter(l)
	}
	var all sync.WaitGroup
	all.Go(func() { l.Blocked(r.Blocked...) })
	all.Go(func() { l.Works(r.Works...) })
	all.Wait()
	if r.Run != nil {
		r.Run(l)
	}
	l.checkWire()
	if len(r.Blocked) == 0 {
		return
	}
	l.RemoveGuard()
	for _, a := range r.Blocked {
		all.Go(func() { l.Control(a) })
	}
	all.Wait()
}

// runAll tries rows side by side, and calls each with every result as it comes. The results are in the order of the rows.
func runAll(ctx context.Context, programs Programs, rows []Row, m *Mutation, each func(Result)) []Result {
	type job struct {
		row    Row
		family Family
	}
	var jobs []job
	for _, r := range rows {
		for _, f := range r.families() {
			jobs = append(jobs, job{r, f})
		}
	}
	results := make([]Result, len(jobs))
	next := make(chan int)
	var mu sync.Mutex
	var all sync.WaitGroup
	for range sideBySide() {
		all.Go(func() {
			for i := range next {
				results[i] = runRow(ctx, programs, jobs[i].row, jobs[i].family, m)
				if each != nil {
					mu.Lock()
					each(results[i])
					mu.Unlock()
				}
			}
		})
	}
	for i := range jobs {
		if ctx.Err() != nil {
			results[i] = Result{Row: jobs[i].row, Family: jobs[i].family, Verdict: Broken, Reasons: []string{"interrupted"}}
			continue
		}
		next <- i
	}
	close(next)
	all.Wait()
	return results
}

// sideBySide is how many rows are tried at a time. They mostly wait, for what must not come.
func sideBySide() int { return 4 * runtime.NumCPU() }

// realRoot says whether root in here is root outside: a user namespace maps fewer ids than there are.
func realRoot() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}
