<?php

namespace App\Services;

use Illuminate\Http\Client\PendingRequest;
use Illuminate\Support\Facades\Http;
use RuntimeException;

/**
 * The product's side of learning-gateway: rosters by REST, everything else by GraphQL.
 */
final class LearningGateway
{
    public function __construct(
        private readonly string $url,
        private readonly string $token,
        private readonly int $timeout = 30,
    ) {
    }

    /** @return list<array<string, ?string>> every account of one provider */
    public function users(string $providerId): array
    {
        return $this->rows('users', $providerId);
    }

    /** @return list<array<string, mixed>> every course of one provider, img_url being a URL */
    public function courses(string $providerId): array
    {
        return $this->rows('courses', $providerId);
    }

    /** @return list<array<string, mixed>> enrollments, of one user or one course when given */
    public function enrollments(string $providerId, ?string $userId = null, ?string $courseId = null): array
    {
        return $this->rows('enrollments', $providerId, array_filter([
            'user_id' => $userId,
            'course_id' => $courseId,
        ], static fn (?string $value): bool => $value !== null));
    }

    /**
     * Run a GraphQL operation. Rows of a provider that is down are missing from the data and
     * named in $errors; only a request that brought nothing back is an exception.
     *
     * @param array<string, mixed> $variables
     * @param list<array<string, mixed>>|null $errors
     * @return array<string, mixed>
     */
    public function query(string $document, array $variables = [], ?array &$errors = null): array
    {
        $answer = $this->http()->post('/graphql', ['query' => $document, 'variables' => $variables])->json();
        $errors = $answer['errors'] ?? [];
        if (! is_array($answer['data'] ?? null)) {
            throw new RuntimeException('learning-gateway: ' . ($errors[0]['message'] ?? 'no data'));
        }

        return $answer['data'];
    }

    /**
     * Register a provider; in answer to a callback, with the nonce it brought.
     *
     * @param array{id: string, type: string, url: string, account_id?: string, api_key?: string, username?: string, password?: string} $provider
     */
    public function addProvider(array $provider, ?string $nonce = null): void
    {
        $this->http()
            ->withHeaders($nonce === null ? [] : ['X-Registration-Nonce' => $nonce])
            ->post('/api/add-provider', $provider)
            ->throw();
    }

    /** @return list<array<string, mixed>> */
    private function rows(string $resource, string $providerId, array $filter = []): array
    {
        return $this->http()->get("/api/$resource", ['id' => $providerId] + $filter)->throw()->json();
    }

    private function http(): PendingRequest
    {
        return Http::baseUrl($this->url)->withToken($this->token)->timeout($this->timeout)->acceptJson();
    }
}
