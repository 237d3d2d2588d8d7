{{- /* The spec of the Ray cluster, shared by the standing cluster and a job's own. */ -}}
{{- define "openba.labels" -}}
app.kubernetes.io/name: openba
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /* Of every pod: who it runs as, and what it may not do. fsGroup makes the state's volume writable for it. */ -}}
{{- define "openba.pod" -}}
automountServiceAccountToken: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch   # else every start walks through all files of the volume
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "openba.container" -}}
securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
{{- end -}}

{{- define "openba.cluster" -}}
rayVersion: {{ .Values.rayVersion | quote }}
# The Jobs API runs any command, so it requires the token. The token is sent unencrypted.
authOptions: {mode: token, secretName: {{ .Values.tokenSecret }}}
headGroupSpec:
  serviceType: ClusterIP
  rayStartParams:
    num-cpus: "0"            # workers run on the nodes alone
    num-gpus: "0"
    dashboard-host: 0.0.0.0  # inside the cluster's network
    metrics-export-port: "8080"
  template:
    metadata:
      annotations: {prometheus.io/scrape: "true", prometheus.io/port: "8080"}
      labels: {{- include "openba.labels" . | nindent 8 }}
    spec:
      {{- include "openba.pod" . | nindent 6 }}
      containers:
        - name: ray-head
          image: {{ .Values.image.head }}
          env:
            - {name: OPENBA_HOME, value: {{ .Values.state.path }}}
          envFrom:
            - secretRef: {name: {{ .Values.environmentSecret }}}
          ports:
            - {name: gcs-server, containerPort: 6379}
            - {name: dashboard, containerPort: 8265}
            - {name: metrics, containerPort: 8080}
          resources: {{- toYaml .Values.head.resources | nindent 12 }}
          {{- include "openba.container" . | nindent 10 }}
          volumeMounts:
            - {name: state, mountPath: {{ .Values.state.path }}}
      volumes:
        - name: state
          persistentVolumeClaim: {claimName: {{ .Values.state.claim }}}
workerGroupSpecs:
  - groupName: a100
    replicas: {{ .Values.workers.nodes }}
    minReplicas: {{ .Values.workers.nodes }}
    maxReplicas: {{ .Values.workers.nodes }}
    rayStartParams:
      num-gpus: {{ .Values.workers.gpus | quote }}
      object-store-memory: {{ .Values.workers.objectStore | quote }}
      metrics-export-port: "8080"
    template:
      metadata:
        annotations: {prometheus.io/scrape: "true", prometheus.io/port: "8080"}
        labels: {{- include "openba.labels" . | nindent 10 }}
      spec:
        {{- include "openba.pod" . | nindent 8 }}
        {{- if .Values.workers.rdma }}
        # InfiniBand pins the memory that it reads and writes. A capability would not help a user other than root:
        # the node's container runtime has to allow it (LimitMEMLOCK=infinity, docs/cluster.md).
        initContainers:
          - name: check-locked-memory
            image: {{ .Values.image.worker }}
            command:
              - bash
              - -c
              - >-
                test "$(ulimit -l)" = unlimited ||
                { echo "locked memory is limited to $(ulimit -l) KiB: set LimitMEMLOCK=infinity for containerd on this node"; exit 1; }
            resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 100m, memory: 64Mi}}
            {{- include "openba.container" . | nindent 12 }}
        {{- end }}
        nodeSelector: {{- toYaml .Values.workers.nodeSelector | nindent 10 }}
        tolerations: {{- toYaml .Values.workers.tolerations | nindent 10 }}
        containers:
          - name: ray-worker
            image: {{ .Values.image.worker }}
            env:
              - {name: OPENBA_HOME, value: {{ .Values.state.path }}}
              {{- range $name, $value := .Values.workers.environment }}
              - {name: {{ $name }}, value: {{ $value | quote }}}
              {{- end }}
            envFrom:
              - secretRef: {name: {{ .Values.environmentSecret }}}
            ports:
              - {name: metrics, containerPort: 8080}
            resources:
              {{- $devices := merge (dict "nvidia.com/gpu" (toString .Values.workers.gpus)) .Values.workers.rdma }}
              {{- range $kind := list "requests" "limits" }}
              {{ $kind }}: {{- toYaml (merge (dict) $devices (index $.Values.workers.resources $kind)) | nindent 16 }}
              {{- end }}
            {{- include "openba.container" . | nindent 12 }}
            volumeMounts:
              - {name: state, mountPath: {{ .Values.state.path }}}
              - {name: shared-memory, mountPath: /dev/shm}
        volumes:
          - name: state
            persistentVolumeClaim: {claimName: {{ .Values.state.claim }}}
          - name: shared-memory
            emptyDir: {medium: Memory, sizeLimit: {{ .Values.workers.sharedMemory }}}
{{- end -}}
