// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The API's bounds of an EndpointSlice.
const (
	maxSliceEndpoints = 1000
	maxSliceAddresses = 100
	maxSlicePorts     = 20000
)

// checkEndpointSlice gives an EndpointSlice the API's defaults and validates it.
func checkEndpointSlice(s *discoveryv1.EndpointSlice) (errs field.ErrorList) {
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN:
	default:
		errs = append(errs, field.NotSupported(field.NewPath("addressType"), s.AddressType,
			[]discoveryv1.AddressType{discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}))
	}
	errs = append(errs, checkSlicePorts(s, field.NewPath("ports"))...)
	path := field.NewPath("endpoints")
	if len(s.Endpoints) > maxSliceEndpoints {
		return append(errs, field.TooMany(path, len(s.Endpoints), maxSliceEndpoints))
	}
	for i := range s.Endpoints {
		errs = append(errs, checkEndpoint(&s.Endpoints[i], s.AddressType, path.Index(i))...)
	}
	return errs
}

func checkSlicePorts(s *discoveryv1.EndpointSlice, path *field.Path) (errs field.ErrorList) {
	if len(s.Ports) > maxSlicePorts {
		return field.ErrorList{field.TooMany(path, len(s.Ports), maxSlicePorts)}
	}
	names := map[string]bool{}
	for i := range s.Ports {
		p, at := &s.Ports[i], path.Index(i)
		if p.Name == nil {
			p.Name = new(string)
		}
		if tcp := corev1.ProtocolTCP; p.Protocol == nil {
			p.Protocol = &tcp
		}
		if *p.Name == "" {
			if names[""] {
				errs = append(errs, field.Duplicate(at.Child("name"), ""))
			}
			names[""] = true
		} else {
			errs = append(errs, checkPortName(*p.Name, names, at.Child("name"))...)
		}
		errs = append(errs, checkProtocol(*p.Protocol, at.Child("protocol"))...)
		if p.Port != nil {
			errs = append(errs, checkPortNumber(*p.Port, at.Child("port"))...)
		}
	}
	return errs
}

func checkEndpoint(e *discoveryv1.Endpoint, family discoveryv1.AddressType, at *field.Path) (errs field.ErrorList) {
	addresses := at.Child("addresses")
	switch n := len(e.Addresses); {
	case n == 0:
		errs = append(errs, field.Required(addresses, "must contain at least 1 address"))
	case n > maxSliceAddresses:
		errs = append(errs, field.TooMany(addresses, n, maxSliceAddresses))
	}
	for i, a := range e.Addresses {
		if family == discoveryv1.AddressTypeFQDN {
			errs = append(errs, validation.IsFullyQualifiedDomainName(addresses.Index(i), a)...)
			continue
		}
		bad := checkRoutableIP(a, addresses.Index(i))
		if len(bad) == 0 && string(familyOf(netip.MustParseAddr(a))) != string(family) {
			bad = field.ErrorList{field.Invalid(addresses.Index(i), a, "must be an "+string(family)+" address")}
		}
		errs = append(errs, bad...)
	}
	if e.NodeName != nil {
		for _, msg := range validation.IsDNS1123Subdomain(*e.NodeName) {
			errs = append(errs, field.Invalid(at.Child("nodeName"), *e.NodeName, msg))
		}
	}
	return errs
}
