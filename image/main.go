// SPDX-License-Identifier: Apache-2.0

// Command image writes fairlead's image as a tar in the OCI layout, for each
// architecture, without a registry: the binary and, for the iptables dataplane,
// the iptables commands with what they need of Debian's packages. Nothing else:
// no shell, no package manager. The same sources give the same bytes.
//
//	go run ./image -o bin/fairlead-image.tar
//	ctr -n k8s.io images import bin/fairlead-image.tar
//
// With -rootfs DIR it writes the files of one architecture, for the Dockerfile.
// With -update-lock it looks for newer packages and writes packages.lock.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
)

const lockFile = "image/packages.lock"

func main() {
	o := options{}
	architectures := flag.String("arch", "amd64,arm64", "`ARCHITECTURES` in the image")
	flag.StringVar(&o.name, "name", "fairlead:dev", "`NAME:TAG` of the image")
	flag.StringVar(&o.version, "version", "devel", "what `fairlead version` says")
	out := flag.String("o", "", "`FILE` to write")
	rootfs := flag.String("rootfs", "", "`DIR` to write the files to, in place of an image; of the first architecture")
	update := flag.Bool("update-lock", false, "look for newer packages, and write "+lockFile)
	flag.Parse()
	o.architectures = strings.Split(*architectures, ",")
	if *rootfs != "" && *architectures == flag.Lookup("arch").DefValue {
		o.architectures = []string{runtime.GOARCH}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o, *out, *rootfs, *update); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// options say what goes into an image.
type options struct {
	name, version string
	architectures []string
}

func run(ctx context.Context, o *options, out, rootfs string, update bool) error {
	if update {
		return updateLock(ctx, lockFile)
	}
	if (out == "") == (rootfs == "") {
		return errors.New("want -o FILE or -rootfs DIR")
	}
	work, err := os.MkdirTemp("", "fairlead-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	var images []platformImage
	for _, arch := range o.architectures {
		files, err := filesOf(ctx, o, arch, filepath.Join(work, arch))
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		if rootfs != "" {
			return files.writeTo(rootfs)
		}
		i, err := newImage(o, arch, files)
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		images = append(images, i)
	}
	return writeLayout(out, o.name, images)
}

// filesOf builds the binary, and adds Debian's part.
func filesOf(ctx context.Context, o *options, arch, work string) (contents, error) {
	binary, err := buildBinary(ctx, o.version, arch, work)
	if err != nil {
		return contents{}, err
	}
	packages, err := fetchPackages(ctx, lockFile, arch)
	if err != nil {
		return contents{}, err
	}
	userland, err := userlandOf(ctx, packages, arch)
	if err != nil {
		return contents{}, err
	}
	return contents{userland: userland, binary: binary}, nil
}
