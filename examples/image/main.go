// SPDX-License-Identifier: Apache-2.0

// Image writes an image of one static binary as a tar that `ctr images import`
// and `docker load` take. It stands in for a registry in the demo.
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	log.SetFlags(0)
	ref := flag.String("name", "", "`NAME` of the image, such as example.test/web:1")
	binary := flag.String("binary", "", "static `FILE` that becomes the entrypoint")
	out := flag.String("o", "", "`FILE` to write")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: image [FLAGS] [ARGUMENT of the entrypoint, unless a Pod has others]...")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := write(*ref, *binary, *out, flag.Args()); err != nil {
		log.Fatalf("image: %v", err)
	}
}

func write(ref, binary, out string, arguments []string) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return fmt.Errorf("-name: %w", err)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("-binary: %w", err)
	}
	entrypoint := "/" + filepath.Base(binary)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return layerOf(entrypoint, content) })
	if err != nil {
		return fmt.Errorf("make the layer: %w", err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return fmt.Errorf("configure the image: %w", err)
	}
	// Without these a runtime leaves the image out, as one for other machines.
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.Entrypoint, config.Config.Cmd = []string{entrypoint}, arguments
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return fmt.Errorf("configure the image: %w", err)
	}
	return tarball.WriteToFile(out, tag, image)
}

func layerOf(path string, content []byte) (io.ReadCloser, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: path[1:], Mode: 0o755, Size: int64(len(content))})
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	return io.NopCloser(&b), err
}
