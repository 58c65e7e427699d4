// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const serviceHead = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n" // 4 lines

func faultLines(name, text string) []string {
	_, faults := decodeFile(name, []byte(text), 100)
	var out []string
	for _, f := range faults {
		out = append(out, problem(name, f.line, f.text))
	}
	return out
}

func TestAFaultIsReportedWithItsLineAndField(t *testing.T) {
	for _, c := range []struct{ name, file, text, want string }{
		{"unknown field", "", serviceHead + "spec:\n  ports:\n  - port: 80\n    nodeport: 1\n", `f.yaml:8: unknown field "spec.ports[0].nodeport"`},
		{"unknown field in the second document", "", svc("a", 1) + "# more\n" + serviceHead + "specs: {}\n", `f.yaml:14: unknown field "specs"`},
		{"field in the wrong case", "", serviceHead + "Spec: {}\n", `f.yaml:5: unknown field "Spec"`},
		{"duplicate key", "", serviceHead + "spec:\n  ports:\n  - port: 80\n    port: 81\n", `f.yaml:8: duplicate key "port"`},
		{"duplicate key at the top", "", serviceHead + "kind: Service\n", `f.yaml:5: duplicate key "kind"`},
		{"wrong type", "", serviceHead + "spec:\n  ports:\n  - port: http\n", `f.yaml:7: spec.ports.port: a string where int32 belongs`},
		{"wrong type in the second item", "", serviceHead + "spec:\n  ports:\n  - port: 1\n  - port: [1]\n", `f.yaml:8: spec.ports.port: a array where int32 belongs`},
		{"number out of its type", "", serviceHead + "spec:\n  ports:\n  - port: 3000000000\n", `f.yaml:7: spec.ports.port: a number 3000000000 where int32 belongs`},
		{"not YAML", "", "apiVersion: v1\nkind: Service\nmetadata: {\n", `not YAML`},
		{"tab", "", "apiVersion: v1\nkind: Service\nmetadata:\n\tname: x\n", `f.yaml:4: not YAML: found character that cannot start any token`},
		{"other kind", "", "---\napiVersion: apps/v1\nkind: Deployment\n", `f.yaml:3: kind Deployment of apps/v1 is not taken from a directory`},
		{"other version", "", "kind: Service\napiVersion: v2\n", `f.yaml:1: kind Service of v2`},
		{"no kind", "", "\nmetadata: {}\n", `f.yaml:2: no kind and apiVersion`},
		{"not an object", "", "- a\n", `f.yaml:1: not an object`},
		{"bad name", "", "apiVersion: v1\nkind: Service\nmetadata:\n  labels: {}\n  name: We_b\nspec: {ports: [{port: 1}]}\n", `f.yaml:5: Service default/We_b: metadata.name: Invalid value`},
		{"no name", "", "apiVersion: v1\nkind: Service\nmetadata:\n  generateName: a-\nspec: {ports: [{port: 1}]}\n", `f.yaml:3: Service default/: metadata.name: Required value`},
		{"bad label", "", "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  labels: {a: '-'}\nspec: {ports: [{port: 1}]}\n", `f.yaml:5: Service default/a: metadata.labels: Invalid value`},
		{"a Node in a namespace", "", "apiVersion: v1\nkind: Node\nmetadata:\n  name: a\n  namespace: b\n", `f.yaml:5: Node b/a: metadata.namespace: Forbidden`},
		{"port out of range", "", serviceHead + "spec:\n  ports:\n  - port: 70000\n", `f.yaml:7: Service default/web: spec.ports[0].port: Invalid value: 70000`},
		{"names of several ports", "", serviceHead + "spec:\n  ports:\n  - {port: 1, name: a}\n  - {port: 2}\n", `f.yaml:8: Service default/web: spec.ports[1].name: Required value`},
		{"same name of ports", "", serviceHead + "spec:\n  ports:\n  - {port: 1, name: a}\n  - {port: 2, name: a}\n", `spec.ports[1].name: Duplicate value`},
		{"same port", "", serviceHead + "spec:\n  ports:\n  - {port: 1, name: a}\n  - {port: 1, name: b}\n", `spec.ports[1]: Duplicate value`},
		{"same node port", "", serviceHead + "spec:\n  type: NodePort\n  ports:\n  - {port: 1, name: a, nodePort: 5}\n  - {port: 2, name: b, nodePort: 5}\n", `spec.ports[1].nodePort: Duplicate value`},
		{"protocol", "", serviceHead + "spec:\n  ports:\n  - {port: 1, protocol: tcp}\n", `spec.ports[0].protocol: Unsupported value: "tcp"`},
		{"no ports", "", serviceHead + "spec: {}\n", `f.yaml:5: Service default/web: spec.ports: Required value`},
		{"target port", "", serviceHead + "spec: {ports: [{port: 1, targetPort: A_B}]}\n", `spec.ports[0].targetPort: Invalid value`},
		{"type", "", serviceHead + "spec: {type: Cluster, ports: [{port: 1}]}\n", `spec.type: Unsupported value`},
		{"nodePort of a ClusterIP", "", serviceHead + "spec: {ports: [{port: 1, nodePort: 30000}]}\n", `spec.ports[0].nodePort: Forbidden`},
		{"headless NodePort", "", serviceHead + "spec: {type: NodePort, clusterIP: None, ports: [{port: 1}]}\n", `spec.clusterIP: Invalid value`},
		{"ExternalName with an address", "", serviceHead + "spec: {type: ExternalName, externalName: a.b, clusterIP: 10.96.0.1}\n", `may not be set for ExternalName`},
		{"clusterIP", "", serviceHead + "spec: {clusterIP: 10.96.0.300, ports: [{port: 1}]}\n", `spec.clusterIPs[0]: Invalid value`},
		{"clusterIP with leading zeros", "", serviceHead + "spec: {clusterIP: 10.96.0.010, ports: [{port: 1}]}\n", `spec.clusterIPs[0]: Invalid value`},
		{"clusterIPs that differ from clusterIP", "", serviceHead + "spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.2], ports: [{port: 1}]}\n", `first value must match`},
		{"two of one family", "", serviceHead + "spec: {ipFamilyPolicy: PreferDualStack, clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 10.96.0.2], ports: [{port: 1}]}\n", `no more than one address for each family`},
		{"two families without a policy", "", serviceHead + "spec: {ipFamilies: [IPv4, IPv6], ports: [{port: 1}]}\n", `spec.ipFamilyPolicy: Invalid value`},
		{"family", "", serviceHead + "spec: {ipFamilies: [IPv5], ports: [{port: 1}]}\n", `spec.ipFamilies[0]: Unsupported value`},
		{"family of an address", "", serviceHead + "spec: {ipFamilies: [IPv6], clusterIP: 10.96.0.1, ports: [{port: 1}]}\n", `expected an IPv6 address`},
		{"affinity", "", serviceHead + "spec: {sessionAffinity: Client, ports: [{port: 1}]}\n", `spec.sessionAffinity: Unsupported value`},
		{"affinity timeout", "", serviceHead + "spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}, ports: [{port: 1}]}\n", `timeoutSeconds: Invalid value`},
		{"external policy", "", serviceHead + "spec: {externalTrafficPolicy: Local, ports: [{port: 1}]}\n", `spec.externalTrafficPolicy: Invalid value`},
		{"internal policy", "", serviceHead + "spec: {internalTrafficPolicy: Node, ports: [{port: 1}]}\n", `spec.internalTrafficPolicy: Unsupported value`},
		{"traffic distribution", "", serviceHead + "spec: {trafficDistribution: Far, ports: [{port: 1}]}\n", `spec.trafficDistribution: Unsupported value`},
		{"health check port", "", serviceHead + "spec: {healthCheckNodePort: 1, ports: [{port: 1}]}\n", `spec.healthCheckNodePort: Invalid value`},
		{"external IP", "", serviceHead + "spec: {externalIPs: [127.0.0.1], ports: [{port: 1}]}\n", `spec.externalIPs[0]: Invalid value`},
		{"source range", "", serviceHead + "spec: {type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0/33], ports: [{port: 1}]}\n", `spec.loadBalancerSourceRanges[0]: Invalid value`},
		{"selector", "", serviceHead + "spec: {selector: {'a b': c}, ports: [{port: 1}]}\n", `spec.selector: Invalid value`},
		{"slice of no family", "", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\nendpoints: []\n", `f.yaml:1: EndpointSlice default/a: addressType: Unsupported value`},
		{"endpoint of the other family", "", strings.ReplaceAll(slice("a", "a", "10.0.0.1"), "IPv4", "IPv6"), `f.yaml:11: EndpointSlice default/a: endpoints[0].addresses[0]: Invalid value`},
		{"endpoint on loopback", "", slice("a", "a", "127.0.0.1"), `endpoints[0].addresses[0]: Invalid value`},
		{"endpoint without address", "", strings.ReplaceAll(slice("a", "a", "x"), `["x"]`, "[]"), `endpoints[0].addresses: Required value`},
		{"slice port", "", strings.ReplaceAll(slice("a", "a", "10.0.0.1"), "8080", "0"), `ports[0].port: Invalid value`},
		{"container port", "", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: c\n    image: i\n    ports:\n    - containerPort: 0\n", `f.yaml:9: Pod default/a: spec.containers[0].ports[0].containerPort: Invalid value`},
		{"no containers", "", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n", `spec.containers: Required value`},
		{"key of a ConfigMap", "", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  'a/b': c\n", `f.yaml:5: ConfigMap default/a: data[a/b]: Invalid value`},
		{"value of a ConfigMap", "", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  a: x\n  b: 1\n", `f.yaml:6: data: a number where string belongs`},
		{"Secret not in base64", "", "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {a: '!'}\n", `f.yaml:1: illegal base64 data`},
		{"twice in a file", "", svc("a", 1) + svc("a", 2), `f.yaml:9: Service default/a: also on line 1`},
		{"field of a List", "", "apiVersion: v1\nkind: List\nitem: []\n", `f.yaml:3: unknown field "item"`},
		{"items of a List", "", "apiVersion: v1\nkind: List\nitems: {}\n", `f.yaml:3: items: want a list`},
		{"kind in a List", "", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List}\n", `f.yaml:4: kind List of v1`},
		{"boolean of YAML 1.1", "", serviceHead + "spec: {publishNotReadyAddresses: yes, ports: [{port: 1}]}\n", `f.yaml:5: spec.publishNotReadyAddresses: a string where bool belongs`},
		{"not a number of JSON", "", serviceHead + "spec: {ports: [{port: .inf}]}\n", `f.yaml:5: ".inf" is not a number`},
		{"custom tag", "", serviceHead + "spec: !x {ports: []}\nmetadata: !y a\n", `duplicate key`},
		{"merge of a scalar", "", serviceHead + "spec:\n  <<: 1\n", `f.yaml:6: a merge key wants a mapping`},
		{"an alias of itself", "", serviceHead + "spec: &a\n  ports: [*a]\n", `nested deeper than 100`},
		{"JSON", "f.json", "{\"apiVersion\":\"v1\",\n\t\"kind\":\"Service\",\n\t\"metadata\":{\"name\":\"a\"},\n\t\"spec\":{\n\t\"port\":1}}", `f.json:5: unknown field "spec.port"`},
		{"JSON syntax", "f.json", "{\"apiVersion\":\"v1\",\n\t\"kind\":}", `f.json:2: not JSON`},
		{"JSON cut", "f.json", "{\"apiVersion\":\"v1\",\n\t\"kind\":", `f.json:2: not JSON: unexpected EOF`},
		{"JSON duplicate", "f.json", "{\"apiVersion\":\"v1\",\n\"apiVersion\":\"v1\",\"kind\":\"Service\"}", `f.json:2: duplicate key "apiVersion"`},
		{"JSON deep", "f.json", strings.Repeat("[", 200), `f.json:1: nested deeper than 100`},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := c.file
			if file == "" {
				file = "f.yaml"
			}
			lines := faultLines(file, c.text)
			if len(lines) == 0 || !strings.Contains(strings.Join(lines, "\n"), c.want) {
				t.Errorf("faults\n%s\nwant one with\n%s\nin\n%s", strings.Join(lines, "\n"), c.want, c.text)
			}
		})
	}
}

func TestAliasesOfAliasesEnd(t *testing.T) {
	bomb := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  a: &a {x: y}\n"
	for c := 'b'; c <= 'z'; c++ {
		bomb += fmt.Sprintf("  %c: &%c {<<: [%s]}\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c, ", c-1), 9), ", "))
	}
	if got := faultLines("f.yaml", bomb); len(got) == 0 {
		t.Error("merge keys that multiply were taken")
	}
	bomb = strings.ReplaceAll(strings.ReplaceAll(bomb, "{<<: [", "["), "]}", "]")
	if got := faultLines("f.yaml", bomb); len(got) == 0 || !strings.Contains(got[0], "larger than") && !strings.Contains(got[0], "too many") {
		t.Errorf("faults %.200q, want one about the size", got)
	}
}

func TestADenseFileIsRefusedBeforeItIsParsed(t *testing.T) {
	_, faults := decodeFile("f.yaml", bytes.Repeat([]byte("[,"), maxTokens), 1)
	if len(faults) != 1 || !strings.Contains(faults[0].text, "split the file") {
		t.Errorf("faults %v", faults)
	}
}

func TestDefaultsAreThoseOfTheAPI(t *testing.T) {
	text := serviceHead + "spec:\n  type: LoadBalancer\n  sessionAffinity: ClientIP\n  ports: [{port: 80}, {port: 0x35, protocol: UDP, name: b, targetPort: dns}]\nstatus: {loadBalancer: {ingress: [{ip: 1.2.3.4}]}}\n"
	text = strings.Replace(text, "{port: 80}", "{port: 80, name: a}", 1) + "---\n" + strings.Replace(slice("web", "web-1", "10.244.1.11"), "default", "", 1)
	objects, faults := decodeFile("f.yaml", []byte(text), 100)
	if len(faults) > 0 || len(objects) != 2 {
		t.Fatalf("objects %v, faults %v", objects, faults)
	}
	s, seconds, cluster, allocate, vip := objects[0].value.(*corev1.Service), int32(10800), corev1.ServiceInternalTrafficPolicyCluster, true, corev1.LoadBalancerIPModeVIP
	want := corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, SessionAffinity: corev1.ServiceAffinityClientIP,
		SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}},
		Ports: []corev1.ServicePort{{Name: "a", Port: 80, Protocol: "TCP", TargetPort: intstr.FromInt32(80)},
			{Name: "b", Port: 53, Protocol: "UDP", TargetPort: intstr.FromString("dns")}},
		ExternalTrafficPolicy: "Cluster", InternalTrafficPolicy: &cluster, AllocateLoadBalancerNodePorts: &allocate,
	}
	if diff := cmp.Diff(want, s.Spec); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	if s.Namespace != "default" || *s.Status.LoadBalancer.Ingress[0].IPMode != vip {
		t.Errorf("namespace %q, ingress %v", s.Namespace, s.Status.LoadBalancer.Ingress)
	}
	e := objects[1].value.(*discoveryv1.EndpointSlice)
	if *e.Ports[0].Name != "" || *e.Ports[0].Protocol != "TCP" || objects[1].line != 11 {
		t.Errorf("slice ports %v, line %d", e.Ports, objects[1].line)
	}
}

func TestAliasesAndMergeKeysMeanWhatTheySay(t *testing.T) {
	text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: &n web, labels: &l {a: x, b: y}, annotations: {<<: *l, b: own}}\ndata: {name: *n}\n"
	objects, faults := decodeFile("f.yaml", []byte(text), 100)
	if len(faults) > 0 {
		t.Fatal(faults[0])
	}
	c := objects[0].value.(*corev1.ConfigMap)
	if diff := cmp.Diff(map[string]string{"a": "x", "b": "own"}, c.Annotations); diff != "" || c.Data["name"] != "web" {
		t.Errorf("annotations (-want +got): %s, data %v", diff, c.Data)
	}
}

func TestTheExamplesAreGood(t *testing.T) {
	files, _ := filepath.Glob("../../examples/basic/*")
	if len(files) == 0 {
		t.Fatal("no examples")
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if objects, faults := decodeFile(filepath.Base(f), data, 100); len(faults) > 0 || len(objects) == 0 {
			t.Errorf("%s: %d objects, faults %v", f, len(objects), faults)
		}
	}
}

// FuzzDecodeFile: whatever the bytes are, there is no panic, a fault has a line
// that exists, and objects without a fault have valid names and a JSON form
// that decodes to no fault again.
func FuzzDecodeFile(f *testing.F) {
	f.Add(false, []byte(svc("a", 1)+slice("a", "b", "10.0.0.1")))
	f.Add(true, []byte(jsonPair("a", []string{"10.0.0.1"})))
	f.Add(false, []byte("apiVersion: v1\nkind: List\nitems:\n- &a {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i, ports: [{containerPort: 1}], resources: {limits: {cpu: 1}}}]}}\n- *a\n"))
	f.Add(false, []byte("a: &a [*a]\n<<: {<<: *a}\n---\n? [x]\n: 0x1\n"))
	f.Add(false, []byte(serviceHead+"spec: {clusterIPs: [10.96.0.1, 'fd00::1'], clusterIP: 10.96.0.1, ports: [{port: 1, targetPort: x}]}\n"))
	examples, _ := filepath.Glob("../../examples/basic/*")
	for _, e := range examples {
		data, err := os.ReadFile(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(false, data)
	}
	f.Fuzz(func(t *testing.T, isJSON bool, data []byte) {
		name := "f.yaml"
		if isJSON {
			name = "f.json"
		}
		objects, faults := decodeFile(name, data, 50)
		for _, x := range faults {
			if strings.Contains(x.text, "panic") || x.line < 0 || x.line > bytes.Count(data, []byte("\n"))+bytes.Count(data, []byte("\r"))+2+strings.Count(string(data), "\u0085")+strings.Count(string(data), "\u2028")+strings.Count(string(data), "\u2029") {
				t.Errorf("fault %+v", *x)
			}
		}
		if len(faults) > 0 {
			return
		}
		for _, o := range objects {
			if o.key.Name == "" || o.key.Name != o.value.GetName() {
				t.Errorf("object %v without its name", o.key)
			}
			if s, ok := o.value.(*corev1.Service); ok {
				checkServiceSurvives(t, s)
			}
		}
	})
}

// checkServiceSurvives: the packed form that a Directory keeps is the Service.
func checkServiceSurvives(t *testing.T, s *corev1.Service) {
	packed, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got := (&service{packed: packed}).unpack()
	a, b := mustJSON(t, s.Spec), mustJSON(t, got.Spec)
	if a != b {
		t.Errorf("packed and unpacked:\n%s\nwas\n%s", b, a)
	}
}

func mustJSON(t *testing.T, v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
