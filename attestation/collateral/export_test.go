package collateral

import (
	"errors"
	"fmt"
)

// Waiters is how many wait for a document.
func Waiters(c *Cache, url string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[url]; f != nil {
		return f.waiters
	}
	return 0
}

// Held is what is in memory.
func Held(c *Cache) (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := 0
	for _, e := range c.entries {
		sum += e.size()
	}
	if sum != c.bytes {
		panic(fmt.Sprintf("the cache counts %d bytes, and holds %d", c.bytes, sum))
	}
	return len(c.entries), c.bytes
}

// Failed lets n documents be refused and says how many refusals are remembered.
func Failed(c *Cache, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range n {
		c.fail(fmt.Sprint(i), errors.New("refused"))
	}
	return len(c.failed)
}
