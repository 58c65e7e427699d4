// SPDX-License-Identifier: Apache-2.0

package servingcert

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
)

// keep writes the file as a Manager did that began at the time, for an hour.
func keep(t *testing.T, dir, commonName, dnsName string, begin time.Time, ips ...string) {
	t.Helper()
	key, keyPEM, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: commonName}, DNSNames: []string{dnsName},
		NotBefore: begin, NotAfter: begin.Add(time.Hour)}
	for _, ip := range ips {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	data := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM...)
	if err := store(filepath.Join(dir, FileName), data); err != nil {
		t.Fatal(err)
	}
}

func TestAStartTakesWhatIsThereOnlyIfItIsGoodForTheNode(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		what  string
		write func(t *testing.T, dir string)
		taken bool
	}{
		{"nothing", func(*testing.T, string) {}, false},
		{"its own", func(t *testing.T, dir string) {
			keep(t, dir, "system:node:one", "one", now.Add(-time.Minute), "192.0.2.1", "2001:db8::1")
		}, true},
		{"its own, with an address that it had", func(t *testing.T, dir string) {
			keep(t, dir, "system:node:one", "one", now.Add(-time.Minute), "192.0.2.1", "2001:db8::1", "192.0.2.9")
		}, true},
		{"one that has expired", func(t *testing.T, dir string) {
			keep(t, dir, "system:node:one", "one", now.Add(-61*time.Minute), "192.0.2.1", "2001:db8::1")
		}, false},
		{"one that is not valid yet", func(t *testing.T, dir string) {
			keep(t, dir, "system:node:one", "one", now.Add(time.Minute), "192.0.2.1", "2001:db8::1")
		}, false},
		{"another node's", func(t *testing.T, dir string) {
			keep(t, dir, "system:node:two", "one", now.Add(-time.Minute), "192.0.2.1", "2001:db8::1")
		}, false},
		{"one for another name", func(t *testing.T, dir string) {
			keep(t, dir, "system:node:one", "two", now.Add(-time.Minute), "192.0.2.1", "2001:db8::1")
		}, false},
		{"one without an address", func(t *testing.T, dir string) {
			keep(t, dir, "system:node:one", "one", now.Add(-time.Minute), "192.0.2.1")
		}, false},
		{"half a file", func(t *testing.T, dir string) {
			keep(t, dir, "system:node:one", "one", now.Add(-time.Minute), "192.0.2.1", "2001:db8::1")
			if err := os.Truncate(filepath.Join(dir, FileName), 300); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := t.TempDir()
			c.write(t, dir)
			m, err := New(Options{Dir: dir, NodeName: "one", Clock: clocktesting.NewFakeClock(now),
				Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}})
			if err != nil {
				t.Fatal(err)
			}
			if cert, err := m.GetCertificate(nil); (err == nil) != c.taken {
				t.Errorf("taken: %v, want %v: %v", cert != nil, c.taken, err)
			}
		})
	}
}

func TestRenewalIsWhen70To90PercentOfTheLifeAreOver(t *testing.T) {
	begin := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	c := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(100 * time.Minute)}
	least, most := time.Hour*24, time.Duration(0)
	for range 1000 {
		d := renewal(c).Sub(begin)
		least, most = min(least, d), max(most, d)
	}
	if least < 70*time.Minute || least > 75*time.Minute || most > 90*time.Minute || most < 85*time.Minute {
		t.Errorf("of 100 minutes it is renewed after %v to %v", least, most)
	}
}

func TestTheFileIsForItsOwnerAloneWhateverWasThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	for _, p := range []string{path, path + ".next"} {
		if err := os.WriteFile(p, []byte("of before"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := store(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	i, statErr := os.Stat(path)
	if err != nil || statErr != nil || string(b) != "new" || i.Mode().Perm() != 0o600 {
		t.Errorf("%q, mode %v, %v, %v", b, i.Mode(), err, statErr)
	}
}
